"""Level 1: one of six objects does one of eight things. The label is a sentence, "a star circling clockwise".

Some (object, motion) pairs are never trained on: they are the zero-shot test.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from alt_fast.data.motion_shapes.drawing import (
    MOTIONS,
    SPLITS,
    TEXTURES,
    WORDINGS,
    Captioned,
    Image8,
    Thing,
    background,
    coverage,
    place_name,
    progress_at,
    travel,
    visible,
    with_article,
)
from alt_fast.data.rng import Stream, generator

CORPUS = "motion_shapes"

LAYOUTS: tuple[tuple[str, ...], ...] = ()  # its corpus has places and sizes

OBJECTS = ("square", "triangle", "star", "cross", "heart", "moon")

DESCRIPTIONS = {
    "square": "a shape with four equal sides and four right angles",
    "triangle": "a shape with three straight sides and three corners",
    "star": "a shape with five pointed tips around its middle",
    "cross": "a shape of two bars that meet at right angles",
    "heart": "a shape with two round lobes above one point",
    "moon": "a curved crescent with two thin horns",
}

PARTS = {
    "square": ("corner", "side"),
    "triangle": ("corner", "side"),
    "star": ("tip",),
    "cross": ("bar",),
    "heart": ("lobe",),
    "moon": ("horn",),
}

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

ORBIT = 0.22  # radius of a circling object's path, as a fraction of the frame

Pair = tuple[str, str]
"""An object and a motion."""

_UNSEEN = frozenset(
    (OBJECTS[i], MOTIONS[(i + step) % len(MOTIONS)]) for i in range(len(OBJECTS)) for step in (0, len(MOTIONS) // 2)
)

TRAINED: tuple[Pair, ...] = tuple((o, m) for o in OBJECTS for m in MOTIONS if (o, m) not in _UNSEEN)

UNSEEN: tuple[Pair, ...] = tuple((o, m) for o in OBJECTS for m in MOTIONS if (o, m) in _UNSEEN)


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


def label_of(pair: Pair) -> str:
    """ "a star circling clockwise" """
    return f"a {pair[0]} {pair[1]}"


def draw_clip(seed: int, split: str, index: int, pair: Pair) -> Clip:
    """The random choices of clip `index` of a split."""
    part = SPLITS.index(split)
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
    texture = background_of(clip, seed, 2 * size)
    noise = generator(seed, Stream.VIDEO, len(SPLITS), clip.background)
    color = np.array(COLORS[clip.color], np.float32)
    frames = []
    for time in times:
        left, top = (round(size / 2 + d * size * (time - 0.5)) for d in clip.drift)
        mask = coverage(clip.object, pose(clip, time), clip.tilt, size)[..., None]
        frame = texture[top : top + size, left : left + size] * (1 - mask) + color * mask
        frame = frame + noise.normal(0, clip.noise, frame.shape)
        frames.append(frame.clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def background_of(clip: Clip, seed: int, size: int) -> NDArray[np.float32]:
    """Texture of a clip, [size, size, 3], of its own seed."""
    rng = generator(seed, Stream.VIDEO, len(SPLITS) + 1, clip.background)
    return background(clip.texture, clip.tint, rng, size)


def pose(clip: Clip, time: float) -> tuple[float, float, float]:
    """x, y and radius of the object at a time in [0, 1], in fractions of the frame; y points down."""
    progress = progress_at(time, clip.start, clip.stop)
    dx, dy, scale = travel(clip.motion, clip.amount, progress, clip.phase, ORBIT)
    return clip.center[0] + dx, clip.center[1] + dy, clip.radius * scale


def things(clip: Clip, time: float, size: int) -> list[Thing]:
    """The background and the object, with the corpus's units that are true of them."""
    x, y, radius = place = pose(clip, time)
    everywhere = np.ones((size, size), np.float32)
    behind, shown = visible([everywhere, coverage(clip.object, place, clip.tilt, size)])
    looks = frozenset({clip.object, f"{_extent(radius)} shape", f"{clip.color} shape"})
    return [
        Thing({"scene": frozenset({f"{clip.texture} background"})}, behind),
        Thing({"scene": frozenset({f"{place_name(x, y)} of the picture"})}, 0 * everywhere),
        Thing({"object": looks, "body": frozenset({*PARTS[clip.object], "middle"})}, shown),
    ]


def _extent(radius: float) -> str:
    return "small" if radius < 0.18 else "big" if radius > 0.26 else "medium"


def captioned_frame(seed: int, index: int, size: int) -> Captioned:
    """A single frame and a caption that names its object: what CLIP's pretraining sees.

    Captions tell object, colour, background, size and place, and never a motion.
    """
    rng = generator(seed, Stream.CAPTION, 0, index)
    pair = (OBJECTS[index % len(OBJECTS)], MOTIONS[rng.integers(len(MOTIONS))])
    clip = draw_clip(seed, "pretrain", index, pair)
    time = float(rng.uniform())
    # Off the middle more often than a moving object is, so that places are seen all over the frame.
    clip = replace(clip, center=(float(rng.uniform(0.15, 0.85)), float(rng.uniform(0.15, 0.85))))
    shown = things(clip, time, size)
    about = [name for thing in shown for category, names in thing.names.items() if category != "body" for name in names]
    return Captioned(render(clip, seed, [time], size)[0], _caption(clip, time, rng), sorted(about), shown)


def _caption(clip: Clip, time: float, rng: np.random.Generator) -> str:
    x, y, radius = pose(clip, time)
    name, place, extent = clip.object, place_name(x, y), _extent(radius)
    colored = f"{with_article(clip.color)} {name}"
    kinds = (
        [f"a {name}", f"a photo of a {name}", f"{name}: {DESCRIPTIONS[name]}"],
        [f"a {name} at the {place}", f"a {extent} {name} at the {place}", f"{colored} at the {place} of the picture"],
        [
            colored,
            f"a {extent} {name}",
            f"{colored} on a {clip.texture} background",
            f"a {name} on a {clip.texture} background",
        ],
    )
    return str(rng.choice(kinds[rng.integers(len(kinds))]))


def reworded_labels(rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """The labels of the trained pairs, and the same sentences in other words."""
    return [label_of(pair) for pair in TRAINED], [f"a {name} {WORDINGS[motion]}" for name, motion in TRAINED]
