"""The paper's linear evaluation (Table 6): a linear layer on the video vectors of a frozen model."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt_fast.data.rng import Stream, generator, integer
from alt_fast.paper.config import ProbeConfig
from alt_fast.training.schedule import Schedule, parameter_groups


def train_probe(vectors: Tensor, labels: Tensor, num_classes: int, config: ProbeConfig) -> nn.Linear:
    """Train a linear layer on video vectors [N, d] fp32 with labels [N]: AdamW, warm-up and a cosine, one-hot labels.

    The last batch of an epoch may be smaller than the others.
    """
    torch.manual_seed(integer(config.seed, Stream.INIT, sample=2))
    layer = nn.Linear(vectors.shape[1], num_classes)
    steps = -(-len(vectors) // config.batch_size)
    schedule = Schedule(steps * config.epochs, steps * config.warmup_epochs)
    optimizer = torch.optim.AdamW(
        parameter_groups(layer, lambda name: config.lr, config.weight_decay), betas=(0.9, 0.98)
    )
    for epoch in range(config.epochs):
        order = torch.from_numpy(generator(config.seed, Stream.PROBE, epoch).permutation(len(vectors)))
        for step, batch in enumerate(order.split(config.batch_size), start=epoch * steps):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule.factor(step)
            optimizer.zero_grad()
            F.cross_entropy(layer(vectors[batch]), labels[batch]).backward()
            optimizer.step()
    return layer
