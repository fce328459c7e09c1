"""Augmentation: one small record holds every random choice about a clip, `apply` executes it (recipe of X-CLIP).

The same choices hold for every frame of a clip.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import functional as TF

from alt_fast.data.decode import Frames
from alt_fast.data.sampling import Positions, segment_positions

MEAN_STD = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
_ANCHORS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))  # MultiScaleCrop's fixed places: x, y


@dataclass(frozen=True)
class AugmentConfig:
    """X-CLIP's recipe by default.

    Args:
        scales: crop sizes of MultiScaleCrop, fractions of the short side; width and height are at most one step apart.
        flip: probability of a horizontal flip; 0 where left and right matter.
        jitter: probability of colour jitter.
        brightness: range of the brightness factor, 1 +- this.
        contrast: range of the contrast factor, 1 +- this.
        saturation: range of the saturation factor, 1 +- this.
        hue: range of the hue shift, +- this (0.5 is half a turn of the colour wheel).
        jitter_per_frame: draw colour jitter anew for every frame, as X-CLIP's code does, rather than once for the clip.
        gray: probability of grayscale.
        test_crop: side of the square center crop for testing, as a fraction of the short side.
        normalize: mean and standard deviation that pixels are normalised with; X-CLIP takes ImageNet's, not CLIP's.
    """

    scales: list[float] = field(default_factory=lambda: [1.0, 0.875, 0.75, 0.66])
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    jitter_per_frame: bool = False
    gray: float = 0.2
    test_crop: float = 0.875
    normalize: Literal["imagenet", "clip"] = "imagenet"

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "gray"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability in [0, 1], got {getattr(self, name)}")
        for name, values in (("scales", self.scales), ("test_crop", [self.test_crop])):
            if not values or not all(0 < value <= 1 for value in values):
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class ColorJitter:
    """Factors to apply in `order` (0 brightness, 1 contrast, 2 saturation, 3 hue)."""

    factors: tuple[float, float, float, float]
    order: tuple[int, ...]


@dataclass(frozen=True)
class ClipRecord:
    """Every random choice about one clip.

    positions: of the frames. crop: width and height as fractions of the short side, then the place of the box, x and y
    from 0 (left, top) to 1 (right, bottom). jitter: none, one for the clip, or one for every frame.
    """

    positions: Positions
    crop: tuple[float, float, float, float]
    flip: bool = False
    jitter: tuple[ColorJitter, ...] = ()
    gray: bool = False


def draw_record(rng: np.random.Generator, config: AugmentConfig, num_frames: int) -> ClipRecord:
    """A training clip's choices."""
    positions = segment_positions(num_frames, rng)
    scales = config.scales
    shapes = [(w, h) for i, w in enumerate(scales) for j, h in enumerate(scales) if abs(i - j) <= 1]
    width, height = shapes[rng.integers(len(shapes))]
    x, y = _ANCHORS[rng.integers(len(_ANCHORS))]
    flip, gray, jitter = (bool(rng.random() < p) for p in (config.flip, config.gray, config.jitter))
    jitters = (num_frames if config.jitter_per_frame else 1) if jitter else 0
    drawn = tuple(_draw_jitter(rng, config) for _ in range(jitters))
    return ClipRecord(positions, (width, height, x, y), flip, drawn, gray)


def _draw_jitter(rng: np.random.Generator, config: AugmentConfig) -> ColorJitter:
    spread = (config.brightness, config.contrast, config.saturation)
    brightness, contrast, saturation = (float(rng.uniform(max(0, 1 - s), 1 + s)) for s in spread)
    hue = float(rng.uniform(-config.hue, config.hue))
    return ColorJitter((brightness, contrast, saturation, hue), tuple(int(i) for i in rng.permutation(4)))


def center_record(config: AugmentConfig, num_frames: int) -> ClipRecord:
    """A test clip: middle frames of the segments, center crop."""
    return ClipRecord(segment_positions(num_frames), (config.test_crop, config.test_crop, 0.5, 0.5))


def apply(record: ClipRecord, frames: Frames, size: tuple[int, int], config: AugmentConfig) -> Tensor:
    """Crop, resize, flip, colour, normalise.

    frames: uint8 RGB [T, H, W, 3]. size: output height and width. Returns fp32 [T, 3, *size].
    """
    height, width = frames.shape[1:3]
    short = min(height, width)
    box_w, box_h = (max(1, round(fraction * short)) for fraction in record.crop[:2])
    left, top = round(record.crop[2] * (width - box_w)), round(record.crop[3] * (height - box_h))
    box = np.ascontiguousarray(frames[:, top : top + box_h, left : left + box_w])
    clip = torch.from_numpy(box).permute(0, 3, 1, 2).float() / 255
    if clip.shape[2:] != size:
        clip = F.interpolate(clip, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    if record.flip:
        clip = clip.flip(-1)
    if record.jitter:
        parts = clip.chunk(len(record.jitter))
        clip = torch.cat([_adjust_colors(part, jitter) for part, jitter in zip(parts, record.jitter, strict=True)])
    if record.gray:
        clip = TF.rgb_to_grayscale(clip, num_output_channels=3)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in MEAN_STD[config.normalize])
    return (clip - mean) / std


def _adjust_colors(frames: Tensor, jitter: ColorJitter) -> Tensor:
    adjust = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    for i in jitter.order:
        frames = adjust[i](frames, jitter.factors[i])
    return frames
