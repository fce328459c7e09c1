"""What is in a Motion Shapes video, and its pixels: every choice from the seed, every frame from the choices."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from alt_fast.data.rng import Stream, generator

OBJECTS = ("square", "triangle", "star", "cross", "heart", "moon")

MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "circling clockwise",
    "circling counterclockwise",
    "growing",
    "shrinking",
)

OPPOSITE = {motion: MOTIONS[i ^ 1] for i, motion in enumerate(MOTIONS)}

COLORS = {
    "red": (255, 110, 100),
    "orange": (255, 175, 60),
    "yellow": (250, 240, 90),
    "green": (120, 240, 120),
    "cyan": (100, 235, 245),
    "blue": (130, 165, 255),
    "pink": (255, 150, 220),
    "white": (250, 250, 250),
}

TEXTURES = ("striped", "checkered", "dotted", "cloudy")

ORBIT = 0.22  # radius of a circling object's path, as a fraction of the frame

_SPLITS = ("train", "test", "unseen", "pretrain", "few_shot")
"""The place of each is the high part of its clips' counters, so that none coincide."""

_UNSEEN = frozenset(
    (OBJECTS[i], MOTIONS[(i + step) % len(MOTIONS)]) for i in range(len(OBJECTS)) for step in (0, len(MOTIONS) // 2)
)

PAIRS = tuple((o, m) for o in OBJECTS for m in MOTIONS if (o, m) not in _UNSEEN)

UNSEEN_PAIRS = tuple((o, m) for o in OBJECTS for m in MOTIONS if (o, m) in _UNSEEN)

Image8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Clip:
    """Everything random about a video. Lengths and places are fractions of the frame, angles clockwise radians."""

    object: str
    motion: str
    color: str
    texture: str
    center: tuple[float, float]  # x, y of the object half way through
    radius: float
    tilt: float
    phase: float  # where on its circle a circling object is half way through
    amount: float  # distance moved, angle travelled, or log of the growth
    start: float  # when the motion starts and ends, as fractions of the clip
    stop: float
    tint: tuple[int, int, int]
    background: int  # seed of the texture
    drift: tuple[float, float]  # how far the background moves
    noise: float  # standard deviation of pixel noise, in grey levels

    @property
    def label(self) -> str:
        return label_of(self.object, self.motion)


def label_of(object_name: str, motion: str) -> str:
    """ "a star circling clockwise" """
    return f"a {object_name} {motion}"


def draw_clip(seed: int, split: str, index: int, pair: tuple[str, str]) -> Clip:
    """The random choices of clip `index` of a split."""
    part = _SPLITS.index(split)
    rng = generator(seed, Stream.VIDEO, part, index)
    object_name, motion = pair
    amount = {"moving": (0.4, 0.6), "circling": (3.5, 5.0)}.get(motion.split()[0], (0.7, 1.1))
    return Clip(
        object=object_name,
        motion=motion,
        color=str(rng.choice(list(COLORS))),
        texture=str(rng.choice(TEXTURES)),
        center=(float(rng.uniform(0.36, 0.64)), float(rng.uniform(0.36, 0.64))),
        radius=float(np.exp(rng.uniform(np.log(0.16), np.log(0.3)))),
        tilt=float(rng.uniform(-0.25, 0.25)),
        phase=float(rng.uniform(0, 2 * np.pi)),
        amount=float(rng.uniform(*amount)),
        start=float(rng.uniform(0, 0.2)),
        stop=float(rng.uniform(0.8, 1)),
        tint=tuple(int(c) for c in rng.integers(20, 90, 3)),  # type: ignore[arg-type]
        background=part << 48 | index,
        drift=tuple(float(d) for d in rng.uniform(-0.2, 0.2, 2)),  # type: ignore[arg-type]
        noise=float(rng.uniform(0, 8)),
    )


def render(clip: Clip, seed: int, times: Sequence[float], size: int) -> Image8:
    """Frames [len(times), size, size, 3] uint8 RGB of a clip at times in [0, 1]."""
    background = _background(clip, seed, 2 * size)
    noise = generator(seed, Stream.VIDEO, len(_SPLITS), clip.background)
    color = np.array(COLORS[clip.color], np.float32)
    frames = []
    for time in times:
        left, top = (round(size / 2 + d * size * (time - 0.5)) for d in clip.drift)
        mask = _mask(clip, time, size)[..., None]
        frame = background[top : top + size, left : left + size] * (1 - mask) + color * mask
        frame = frame + noise.normal(0, clip.noise, frame.shape)
        frames.append(frame.clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def pose(clip: Clip, time: float) -> tuple[float, float, float]:
    """x, y and radius of the object at a time in [0, 1], in fractions of the frame; y points down.

    Motions are symmetric around the middle of the movement: there, the pose says nothing about the direction.
    """
    progress = float(np.clip((time - clip.start) / (clip.stop - clip.start), 0, 1)) - 0.5
    x, y = clip.center
    radius = clip.radius
    step = clip.amount * progress
    match clip.motion:
        case "moving left":
            x -= step
        case "moving right":
            x += step
        case "moving up":
            y -= step
        case "moving down":
            y += step
        case "circling clockwise" | "circling counterclockwise":
            angle = clip.phase + (step if clip.motion == "circling clockwise" else -step)
            x += ORBIT * float(np.cos(angle))
            y += ORBIT * float(np.sin(angle))
        case "growing":
            radius *= float(np.exp(step))
        case "shrinking":
            radius *= float(np.exp(-step))
    return x, y, radius


def _mask(clip: Clip, time: float, size: int) -> NDArray[np.float32]:
    """Coverage of the object, [size, size] in [0, 1], anti-aliased by drawing at three times the size."""
    x, y, radius = pose(clip, time)
    scale = 3
    turn = np.array([[np.cos(clip.tilt), np.sin(clip.tilt)], [-np.sin(clip.tilt), np.cos(clip.tilt)]])
    points = (_OUTLINES[clip.object] @ turn * radius + (x, y)) * size * scale
    canvas = Image.new("L", (size * scale, size * scale))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points.tolist()], fill=255)
    return np.asarray(canvas.reduce(scale), np.float32) / np.float32(255)


def _outlines() -> dict[str, NDArray[np.float64]]:
    """Corner points of every object, [P, 2], within the unit circle."""

    def around(radii: Sequence[float]) -> NDArray[np.float64]:
        turns = np.arange(len(radii)) / len(radii) * 2 * np.pi - np.pi / 2
        return np.stack([np.cos(turns), np.sin(turns)], 1) * np.array(radii)[:, None]

    arm = 0.32
    cross = [(arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1)]
    cross += [(-x, -y) for x, y in cross]
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    heart_y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    outer = np.linspace(0.35 * np.pi, 1.65 * np.pi, 24)
    inner = outer[::-1]
    moon = np.concatenate(
        [np.stack([np.cos(outer), np.sin(outer)], 1), np.stack([0.78 * np.cos(inner) + 0.5, 0.83 * np.sin(inner)], 1)]
    )
    return {
        "square": around([1, 1, 1, 1]),
        "triangle": around([1, 1, 1]),
        "star": around([1, 0.42] * 5),
        "cross": np.array(cross),
        "heart": np.stack([16 * np.sin(t) ** 3, -heart_y], 1) / 17,
        "moon": moon,
    }


_OUTLINES = _outlines()


def _background(clip: Clip, seed: int, size: int) -> NDArray[np.float32]:
    """A muted texture, [size, size, 3], of its own seed."""
    rng = generator(seed, Stream.VIDEO, len(_SPLITS) + 1, clip.background)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    turn, period = rng.uniform(0, np.pi), rng.uniform(0.06, 0.16)
    u = (x * np.cos(turn) + y * np.sin(turn)) / period
    v = (y * np.cos(turn) - x * np.sin(turn)) / period
    match clip.texture:
        case "striped":
            pattern = (u % 1 < 0.5).astype(np.float32)
        case "checkered":
            pattern = ((u % 1 < 0.5) ^ (v % 1 < 0.5)).astype(np.float32)
        case "dotted":
            pattern = ((u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.1).astype(np.float32)
        case _:
            cells = Image.fromarray(rng.integers(0, 255, (9, 9), dtype=np.uint8))
            pattern = np.asarray(cells.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255
    contrast = rng.uniform(15, 40)
    return np.array(clip.tint, np.float32) + contrast * (pattern[..., None] - 0.5)
