"""Settings of data: how clips are loaded and augmented, what they look like, the size of the generated dataset."""

import math
from dataclasses import dataclass, field
from typing import Literal

from alt_fast.errors import ArgumentError, check_at_least, check_seed

LoaderName = Literal["auto", "dali", "torch"]


@dataclass(frozen=True)
class Loading:
    """How clips get from files to the device.

    loader: who crops, resizes and colours: "dali", "torch", or "auto", DALI where it and a GPU are there. workers:
    decoding processes; 0 decodes in the process that asks. timeout: seconds that one video may take.
    """

    loader: LoaderName = "auto"
    workers: int = 2
    timeout: float = 60.0


@dataclass(frozen=True)
class AugmentConfig:
    """X-CLIP's recipe by default; the paper lists of it flips and MultiScaleCrop, and neither jitter nor gray.

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
                raise ArgumentError(f"{name} must be a probability in [0, 1], got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation", "hue"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ArgumentError(f"{name} must be >= 0 and finite, got {getattr(self, name)}")
        for name, values in (("scales", self.scales), ("test_crop", [self.test_crop])):
            if not values or not all(0 < value <= 1 for value in values):
                raise ArgumentError(f"{name} must be in (0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class ClipSpec:
    """What a clip looks like: frames, height and width in pixels, augmentation."""

    num_frames: int
    size: tuple[int, int]
    augment: AugmentConfig


@dataclass(frozen=True)
class MotionShapesConfig:
    """Size of the dataset.

    Args:
        level: 1, an object that moves (36 trained classes, 12 unseen); 2, an actor with a tool (40 and 40); 3, the
            same with several tools for each actor's motion (160 and 40).
        seed: draws every video.
        train_per_class: training videos for each of the trained classes.
        test_per_class: test videos for each trained class, and for each of the unseen ones.
        few_shot_per_class: further videos of each unseen class, to draw a few from and train on.
        frames: frames per video.
        size: width and height in pixels.
    """

    level: int = 1
    seed: int = 0
    train_per_class: int = 24
    test_per_class: int = 8
    few_shot_per_class: int = 0
    frames: int = 20
    size: int = 56

    def __post_init__(self) -> None:
        if self.level not in (1, 2, 3):
            raise ArgumentError(f"level must be 1, 2 or 3, got {self.level}")
        check_seed("seed", self.seed)
        check_at_least(self, train_per_class=1, test_per_class=1, few_shot_per_class=0, frames=2, size=32)
