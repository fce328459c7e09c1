"""What is where in a video of Motion Shapes, as a model takes it: for tests of what its regions align to."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from alt_fast.data.augment import ClipRecord, cut
from alt_fast.data.config import MotionShapesConfig
from alt_fast.data.motion_shapes import LEVELS
from alt_fast.data.motion_shapes.drawing import Thing
from alt_fast.data.motion_shapes.generate import splits, times_of
from alt_fast.data.sampling import frame_number


def read_dataset(video: Path) -> MotionShapesConfig | None:
    """Return the configuration of the dataset that a video is of; None for a video of no generated dataset."""
    try:
        found = json.loads((video.parent.parent / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("dataset") != "motion_shapes":
        return None
    return MotionShapesConfig(
        **{name: found[name] for name in MotionShapesConfig.__dataclass_fields__ if name in found}
    )


def clip_of(video: Path, config: MotionShapesConfig) -> Any | None:
    """Return the random choices of a video, its level's Clip; None for one that the dataset did not write.

    config: of the dataset in whose folder it lies.
    """
    found = next(((classes, count) for name, classes, count in splits(config) if name == video.parent.name), None)
    if found is None or not video.stem.isdecimal() or int(video.stem) >= len(found[0]) * found[1]:
        return None
    index, (classes, each) = int(video.stem), found
    return LEVELS[config.level].draw_clip(config.seed, video.parent.name, index, classes[index // each])


def things_in(video: Path, record: ClipRecord, size: tuple[int, int]) -> list[list[Thing]] | None:
    """Return what is in every frame of a clip, as `record` cuts it out: masks are [*size].

    None for a video of no generated dataset.
    """
    config = read_dataset(video)
    clip = None if config is None else clip_of(video, config)
    if config is None or clip is None:
        return None
    level, times = LEVELS[config.level], times_of(config.frames)
    numbers = [frame_number(position, config.frames) for position in record.positions]
    frames = [level.things(clip, times[number], config.size) for number in numbers]
    masks = np.stack([np.stack([thing.mask for thing in things], -1) for things in frames])
    cut_masks = cut(record, (255 * masks).round().astype(np.uint8), size).float() / 255
    return [
        [Thing(thing.names, mask.numpy()) for thing, mask in zip(things, shown, strict=True)]
        for things, shown in zip(frames, cut_masks, strict=True)
    ]
