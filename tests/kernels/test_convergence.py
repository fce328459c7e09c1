"""Training with the kernels follows training with the references, as closely as rounding lets anything follow it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt_fast_kernels import match, merge, proportional_attention_qkvpacked, use_backend

CLASSES, TOKENS, CHANNELS = 4, 9, 16


class SmallViT(nn.Module):
    """Blocks that merge two tokens each."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, CHANNELS), nn.Linear(CHANNELS, CLASSES)
        self.norms = nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in range(2 * blocks))
        self.qkv = nn.ModuleList(nn.Linear(CHANNELS, 3 * CHANNELS) for _ in range(blocks))
        self.proj = nn.ModuleList(nn.Linear(CHANNELS, CHANNELS) for _ in range(blocks))
        self.mlp = nn.ModuleList(nn.Linear(CHANNELS, CHANNELS) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        size = torch.ones(x.shape[:2])
        for i in range(len(self.mlp)):
            qkv = self.qkv[i](self.norms[2 * i](x)).view(*x.shape[:2], 3, 1, CHANNELS)
            branch = self.proj[i](proportional_attention_qkvpacked(qkv, size))
            x, size, normed = merge(x, size, match(qkv[:, :, 1], 2, 1), branch, norm=self.norms[2 * i + 1])
            x = x + F.gelu(self.mlp[i](normed))
        return self.head(x[:, 0])


def train(seed: int, interpreted: bool, rounding: int | None) -> Tensor:
    """The losses [steps] of a run, a small and short one in the interpreter.

    rounding: seed of a last-bit error in every parameter after every step, or None.
    """
    torch.manual_seed(seed)
    blocks, batch, steps = (1, 1, 20) if interpreted else (2, 8, 200)
    model, prototypes = SmallViT(blocks), torch.randn(CLASSES, TOKENS, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    data = torch.Generator(prototypes.device).manual_seed(seed)
    errors = torch.Generator(prototypes.device).manual_seed(rounding or 0)
    losses = []
    for _ in range(steps):
        label = torch.randint(CLASSES, (batch,), generator=data)
        x = prototypes[label] + torch.randn(batch, TOKENS, 8, generator=data)
        loss = F.cross_entropy(model(x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rounding is not None:
            with torch.no_grad():
                for parameter in model.parameters():
                    error = torch.rand(parameter.shape, generator=errors) * 2 - 1
                    parameter.mul_(1 + torch.finfo(torch.float32).eps * error)
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.kernel_only
def test_training_with_kernels_stays_among_runs_that_differ_by_rounding(interpreted: bool) -> None:
    """Eight reference runs with last-bit errors spread around one without: kernels stay within that spread.

    Runs drift apart exponentially, so a run's distance is the mean logarithm of its distances; for kernels it may be as
    far beyond the largest of the eight as the eight are apart from each other.
    """
    seed = torch.initial_seed()
    with use_backend("reference"):
        plain = train(seed, interpreted, None)
        spread = torch.stack([train(seed, interpreted, rounding) for rounding in range(1, 9)])
    ours = train(seed, interpreted, None)

    def distance(losses: Tensor) -> Tensor:
        return (losses - plain).abs().clamp_min(torch.finfo(torch.float32).eps).log().mean(-1)

    others = distance(spread)
    assert distance(ours) <= others.max() + (others.max() - others.min())
    assert interpreted or plain[-50:].mean() < 0.7 * plain[:20].mean()  # it learns
