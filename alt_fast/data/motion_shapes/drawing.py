"""What all levels are drawn with: motions, outlines, textured backgrounds; and what can be said of what was drawn."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Image8 = NDArray[np.uint8]
Mask = NDArray[np.float32]

SPLITS = ("train", "test", "unseen", "pretrain", "few_shot")
"""The place of each is the high part of its clips' counters, so that none coincide."""

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

WORDINGS = {
    "moving left": "going towards the left border",
    "moving right": "going towards the right border",
    "moving up": "going towards the upper border",
    "moving down": "going towards the lower border",
    "circling clockwise": "going around like the hands of a clock",
    "circling counterclockwise": "going around against the hands of a clock",
    "growing": "becoming bigger",
    "shrinking": "becoming smaller",
}
"""Motions in other words."""

TEXTURES = ("striped", "checkered", "dotted", "cloudy")

_FINE = 3
"""Outlines are drawn at so many times their size, and averaged."""


class Thing(NamedTuple):
    """Something in a frame. names: units of entities true of it, by category. mask: [size, size] its share of pixels.

    Where things overlap, the mask is of what can be seen, hollow things with their holes; it is 0 for what is true of
    the frame and nowhere in it.
    """

    names: Mapping[str, frozenset[str]]
    mask: Mask


class Captioned(NamedTuple):
    """What CLIP's pretraining sees. image: uint8 [size, size, 3]. things: what is in it, the background first.

    about: units of the corpus that a caption of it may be about. layout: what is true of it of the level's LAYOUTS.
    """

    image: Image8
    caption: str
    about: Sequence[str]
    things: Sequence[Thing]
    layout: Sequence[str] = ()


def travel(motion: str, amount: float, progress: float, phase: float, orbit: float) -> tuple[float, float, float]:
    """How far a motion has gone from its middle: x and y in fractions of the frame (y points down), and the scale.

    amount: distance moved, angle travelled, or log of the growth. progress: -0.5 at its start, 0.5 at its end. phase:
    where on its circle of radius `orbit` a circling thing is half way through. Motions are symmetric around their
    middle: there, the place says nothing about the direction.
    """
    step = amount * progress
    match motion:
        case "moving left":
            return -step, 0.0, 1.0
        case "moving right":
            return step, 0.0, 1.0
        case "moving up":
            return 0.0, -step, 1.0
        case "moving down":
            return 0.0, step, 1.0
        case "circling clockwise" | "circling counterclockwise":
            angle = phase + (step if motion == "circling clockwise" else -step)
            return orbit * float(np.cos(angle)), orbit * float(np.sin(angle)), 1.0
        case "growing":
            return 0.0, 0.0, float(np.exp(step))
        case _:
            return 0.0, 0.0, float(np.exp(-step))


def progress_at(time: float, start: float, stop: float) -> float:
    """How far a movement from `start` to `stop` is at a time, all in [0, 1]: -0.5 before it, 0.5 after it."""
    return float(np.clip((time - start) / (stop - start), 0, 1)) - 0.5


def coverage(shape: str, place: tuple[float, float, float], tilt: float, size: int) -> Mask:
    """Coverage of a shape by pixel, [size, size] in [0, 1], anti-aliased. place: x, y and radius, of the frame."""
    x, y, radius = place
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    points = (OUTLINES[shape] @ turn * radius + (x, y)) * size * _FINE
    canvas = Image.new("L", (size * _FINE, size * _FINE))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points.tolist()], fill=255)
    return np.asarray(canvas.reduce(_FINE), np.float32) / np.float32(255)


PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
"""What `place_name` returns."""


def place_name(x: float, y: float) -> str:
    """ "top left", "center", "right": one of nine places in a frame."""
    horizontal = "left" if x < 0.4 else "right" if x > 0.6 else ""
    vertical = "top" if y < 0.4 else "bottom" if y > 0.6 else ""
    return " ".join(filter(None, (vertical, horizontal))) or "center"


def with_article(word: str) -> str:
    """ "a star", "an axe" """
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def visible(masks: Sequence[Mask]) -> list[Mask]:
    """What can be seen of things drawn one over the other, the last one in front: coverage by pixel."""
    seen: list[Mask] = []
    free = np.ones_like(masks[0])
    for mask in reversed(masks):
        seen.append(mask * free)
        free = free * (1 - mask)
    return seen[::-1]


def by_patch(masks: NDArray[np.float32], patch: tuple[int, int]) -> NDArray[np.float32]:
    """The share of every patch that masks [..., H, W] fill: [..., H // height, W // width]. patch: height and width."""
    height, width = patch
    rows, columns = masks.shape[-2] // height, masks.shape[-1] // width
    whole = masks[..., : rows * height, : columns * width]
    return whole.reshape(*masks.shape[:-2], rows, height, columns, width).mean((-3, -1))


def owners(things: Sequence[Thing], patch: tuple[int, int]) -> NDArray[np.int64]:
    """The number of the thing that every patch shows, [rows, columns]. patch: its height and width in pixels.

    A patch shows the thing that fills most of it, from a quarter on, or nothing but background; -1: neither.
    """
    shares = by_patch(np.stack([thing.mask for thing in things]), patch)
    best = shares[1:].argmax(0) + 1
    shown = np.where(shares[0] >= 0.9, 0, -1)
    return np.where(shares[1:].max(0) >= 0.25, best, shown)


def _outlines() -> dict[str, NDArray[np.float64]]:
    """Corner points of every shape, [P, 2], within the unit circle."""

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
        "circle": around([0.9] * 24),
        "triangle": around([1, 1, 1]),
        "star": around([1, 0.42] * 5),
        "cross": np.array(cross),
        "heart": np.stack([16 * np.sin(t) ** 3, -heart_y], 1) / 17,
        "moon": moon,
    }


OUTLINES = _outlines()


def background(texture: str, tint: tuple[int, int, int], rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """A muted texture, [size, size, 3]."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    turn, period = rng.uniform(0, np.pi), rng.uniform(0.06, 0.16)
    u = (x * np.cos(turn) + y * np.sin(turn)) / period
    v = (y * np.cos(turn) - x * np.sin(turn)) / period
    match texture:
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
    return np.array(tint, np.float32) + contrast * (pattern[..., None] - 0.5)
