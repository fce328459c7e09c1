"""Augmentation: one small record holds every random choice about a clip, `apply` executes it (recipe of X-CLIP).

The same choices hold for every frame of a clip. All colour steps are affine in RGB, so that their product is one
matrix, applied in one pass, alike in every backend: contrast pivots on middle gray instead of the image's mean, hue
turns the chroma plane of YIQ instead of HSV's wheel, and values are clipped once, at the end, as DALI's operations do.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from alt_fast.data.config import AugmentConfig
from alt_fast.data.decode import Frames, Planes
from alt_fast.data.sampling import Positions, segment_positions

MEAN_STD = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
BLANK = 2.0
"""Grey levels of standard deviation, of 255: a picture with less in every channel shows nothing."""
_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_GRAY = np.tile(_YIQ[0], (3, 1))  # RGB to three times luma
_ANCHORS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))  # MultiScaleCrop's fixed places: x, y


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


def color_map(record: ClipRecord) -> Tensor:
    """Jitter and gray as an affine map of each frame from RGB in [0, 255] to [0, 1]: fp32 [T, 3, 4].

    Columns 0 to 2 multiply, column 3 is added.
    """
    maps = []
    for jitter in record.jitter or (None,):
        weight, bias = np.eye(3) / 255, np.zeros(3)
        if jitter is not None:
            for i in jitter.order:
                step, shift = _color_step(i, jitter.factors[i])
                weight, bias = step @ weight, step @ bias + shift
        if record.gray:
            weight, bias = _GRAY @ weight, _GRAY @ bias
        maps.append(np.column_stack([weight, bias]))
    return torch.from_numpy(np.stack(maps)).float().expand(len(record.positions), 3, 4).contiguous()


def _color_step(which: int, factor: float) -> tuple[NDArray[np.float64], float]:
    """Matrix and shift of one step of a ColorJitter."""
    if which == 0:  # brightness
        return factor * np.eye(3), 0.0
    if which == 1:  # contrast
        return factor * np.eye(3), 0.5 * (1 - factor)
    if which == 2:  # saturation
        return factor * np.eye(3) + (1 - factor) * _GRAY, 0.0
    turn = 2 * np.pi * factor
    rotation = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    return np.linalg.inv(_YIQ) @ rotation @ _YIQ, 0.0


def view_record(
    config: AugmentConfig, num_frames: int, crop: tuple[int, int] = (0, 1), clip: tuple[int, int] = (0, 1)
) -> ClipRecord:
    """A view for testing. crop, clip: (which, of how many), at places in the picture and moments in the video.

    A single crop is the center one of `test_crop`; several are squares of the short side, spread along the long one.
    Clip j of m takes the frames at (j + 0.5) / m of each segment, so a single clip takes the middle ones.
    """
    (number, crops), (moment, clips) = crop, clip
    positions = segment_positions(num_frames, offset=(moment + 0.5) / clips)
    if crops == 1:
        return ClipRecord(positions, (config.test_crop, config.test_crop, 0.5, 0.5))
    place = number / (crops - 1)
    return ClipRecord(positions, (1.0, 1.0, place, place))


def crop_box(record: ClipRecord, height: int, width: int) -> tuple[int, int, int, int]:
    """The record's box in a picture of this size: top, left, height, width in pixels."""
    short = min(height, width)
    box_w, box_h = (max(1, round(fraction * short)) for fraction in record.crop[:2])
    return round(record.crop[3] * (height - box_h)), round(record.crop[2] * (width - box_w)), box_h, box_w


def cut(record: ClipRecord, frames: Frames, size: tuple[int, int]) -> Tensor:
    """Crop, resize, flip. frames: uint8 RGB [T, H, W, 3]. size: height and width. Returns uint8 [T, 3, *size]."""
    top, left, height, width = crop_box(record, *frames.shape[1:3])
    clip = torch.from_numpy(frames[:, top : top + height, left : left + width]).permute(0, 3, 1, 2).contiguous()
    return _resize(record, clip, size)


def cut_picture(record: ClipRecord, size: tuple[int, int], planes: Planes) -> Frames:
    """Crop, resize and flip one picture, as `cut` does a clip. Returns uint8 [3, *size]."""
    clip = torch.from_numpy(crop_picture(record, planes, axis=0))[None]
    return _resize(record, clip, size)[0].numpy()


def crop_picture(record: ClipRecord, planes: Planes, axis: int) -> Frames:
    """Return the record's box of one picture, uint8, with the colours on this axis."""
    top, left, height, width = crop_box(record, *planes[0].shape)
    return np.stack([plane[top : top + height, left : left + width] for plane in planes], axis)


def _resize(record: ClipRecord, clip: Tensor, size: tuple[int, int]) -> Tensor:
    if clip.shape[2:] != size:
        clip = F.interpolate(clip, size, mode="bilinear", antialias=True, align_corners=False)
    return (clip.flip(-1) if record.flip else clip).contiguous()


def paint(clips: Tensor, maps: Tensor, config: AugmentConfig, dtype: torch.dtype = torch.float32) -> Tensor:
    """Colour, clip to [0, 1], normalise. clips: uint8 [B, T, 3, H, W]. maps: of `color_map`, [B, T, 3, 4]."""
    mean, std = (torch.tensor(values, device=clips.device).view(3, 1) for values in MEAN_STD[config.normalize])
    weight, bias = maps.view(-1, 3, 4).split((3, 1), dim=-1)
    values = torch.baddbmm((bias - mean) / std, weight / std, clips.flatten(3).flatten(0, 1).float())
    return values.clamp_(-mean / std, (1 - mean) / std).to(dtype).view(clips.shape)


def unpaint(video: Tensor, normalize: str) -> Tensor:
    """Return the pixels of normalised clips or frames [..., 3, H, W], as uint8."""
    mean, std = (torch.tensor(values, device=video.device).view(3, 1, 1) for values in MEAN_STD[normalize])
    return ((video * std + mean) * 255).round().clamp(0, 255).byte()


def is_blank(frames: Tensor, normalize: str | None = None) -> Tensor:
    """Return which frames [..., 3, H, W] are of one colour, as bool [...].

    normalize: by which they were painted; None for pixels, 0 to 255.
    """
    pixels = frames.float().flatten(-2)
    apart = pixels - pixels.mean(-1, keepdim=True)
    spread = torch.linalg.vector_norm(apart, dim=-1) / pixels.shape[-1] ** 0.5  # `Tensor.std` takes four times as long
    if normalize is not None:
        spread = 255 * spread * torch.tensor(MEAN_STD[normalize][1], device=frames.device)
    return (spread < BLANK).all(-1)


def apply(record: ClipRecord, frames: Frames, size: tuple[int, int], config: AugmentConfig) -> Tensor:
    """The whole record. frames: uint8 RGB [T, H, W, 3]. size: output height and width. Returns fp32 [T, 3, *size]."""
    return paint(cut(record, frames, size)[None], color_map(record)[None], config)[0]
