"""Mixup (Zhang et al., 2018), CutMix (Yun et al., 2019) and label smoothing of a batch, as functions of a number."""

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from alt_fast.data.rng import Stream, generator


@dataclass(frozen=True)
class Mixing:
    """How batches are mixed; each clip with the one at the other end of its batch, as timm does.

    mixup, cutmix: Beta parameters; 0 for none. switch: probability of CutMix where both are on. smoothing: probability
    mass spread over all classes. seed: with the number of the batch, all there is to the choices.
    """

    num_classes: int
    mixup: float
    cutmix: float
    switch: float
    smoothing: float
    seed: int

    def __call__(self, video: Tensor, label: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """video: [B, T, 3, H, W]. label: [B]. number: of the batch. Returns the mixed video and targets [B, I]."""
        target = F.one_hot(label, self.num_classes).float() * (1 - self.smoothing) + self.smoothing / self.num_classes
        if not self.mixup and not self.cutmix:
            return video, target
        rng = generator(self.seed, Stream.MIX, sample=number)
        cut = self.cutmix > 0 and (self.mixup <= 0 or rng.random() < self.switch)
        alpha = self.cutmix if cut else self.mixup
        share = float(rng.beta(alpha, alpha))  # of a clip itself
        other = video.flip(0)
        if cut:
            top, bottom, left, right = cut_box(rng, share, *video.shape[-2:])
            video = video.clone()
            video[..., top:bottom, left:right] = other[..., top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (video.shape[-2] * video.shape[-1])
        else:
            video = video * share + other * (1 - share)
        return video, target * share + target.flip(0) * (1 - share)


def cut_box(rng: np.random.Generator, share: float, height: int, width: int) -> tuple[int, int, int, int]:
    """Draw CutMix's box, of 1 - share of the picture but for what lies outside of it: top, bottom, left, right."""
    side = (1 - share) ** 0.5
    box_h, box_w = int(height * side), int(width * side)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = np.clip([y - box_h // 2, y + box_h // 2], 0, height).tolist()
    left, right = np.clip([x - box_w // 2, x + box_w // 2], 0, width).tolist()
    return top, bottom, left, right
