"""Contrastive training of the tiny CLIP on captioned single frames (Radford et al., 2021): the default job's first step.

ALT presumes a vision-language model; where none can be downloaded, this makes a small one that knows Motion Shapes'
objects, colours, sizes, places and backgrounds, and has never seen a motion.
"""

from collections.abc import Callable, Sequence

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alt_fast.config import PretrainConfig
from alt_fast.data.augment import MEAN_STD
from alt_fast.data.motion_shapes import captioned_frame
from alt_fast.fit import Schedule, Task, parameter_groups


class CaptionedFrames(Dataset[tuple[Tensor, str]]):
    """Frame [3, size, size] fp32 normalised and its caption, by index; endless."""

    def __init__(self, seed: int, size: int, normalize: str) -> None:
        self.seed, self.size = seed, size
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in MEAN_STD[normalize])

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        image, caption = captioned_frame(self.seed, index, self.size)
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
        return (pixels - self.mean) / self.std, caption


def contrastive_loss(image: Tensor, text: Tensor, captions: Sequence[str], scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy on unit vectors [B, d]; frames with the same caption are positives of each other."""
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    ids = torch.tensor([number[caption] for caption in captions], device=image.device)
    target = (ids[:, None] == ids[None, :]).float()
    target = target / target.sum(1, keepdim=True)
    logits = scale * image @ text.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def pretrain_task(
    clip: open_clip.CLIP, config: PretrainConfig, seed: int, normalize: str, workers: int, device: torch.device
) -> Task:
    """The stage that trains `clip` in place."""
    tokenizer = open_clip.SimpleTokenizer(context_length=clip.context_length)
    frames = CaptionedFrames(seed, clip.visual.image_size[0], normalize)

    def batches(step: int) -> "DataLoader[tuple[Tensor, list[str]]]":
        size = config.batch_size
        indices = [range(s * size, (s + 1) * size) for s in range(step, config.steps)]
        return DataLoader(frames, batch_sampler=indices, num_workers=workers)

    def loss(batch: tuple[Tensor, list[str]], step: int) -> Tensor:
        images, captions = batch
        image = clip.encode_image(images.to(device), normalize=True)
        text = clip.encode_text(tokenizer(captions).to(device), normalize=True)
        return contrastive_loss(image, text, captions, clip.logit_scale.exp().clamp(max=100))

    rate: Callable[[str], float] = lambda name: config.lr  # noqa: E731
    return Task(
        name="clip",
        module=clip,
        groups=parameter_groups(clip, rate, weight_decay=0.01),
        schedule=Schedule(config.steps, warmup=min(50, config.steps // 4)),
        batches=batches,
        loss=loss,
        steps_per_epoch=config.steps,
        clip_grad=1.0,
    )
