"""What the tiny CLIP reads: captions of single Motion Shapes frames, and its labels in other words."""

from dataclasses import replace

import numpy as np

from alt_fast.data.motion_shapes.draw import MOTIONS, OBJECTS, PAIRS, Clip, Image8, draw_clip, label_of, pose, render
from alt_fast.data.rng import Stream, generator

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

DESCRIPTIONS = {
    "square": "a shape with four equal sides and four right angles",
    "triangle": "a shape with three straight sides and three corners",
    "star": "a shape with five pointed tips around its middle",
    "cross": "a shape of two bars that meet at right angles",
    "heart": "a shape with two round lobes above one point",
    "moon": "a curved crescent with two thin horns",
}


def captioned_frame(seed: int, index: int, size: int) -> tuple[Image8, str]:
    """A single frame [size, size, 3] and a caption that names its object: what CLIP's pretraining sees.

    Captions tell object, colour, background, size and place, and never a motion.
    """
    rng = generator(seed, Stream.CAPTION, 0, index)
    pair = (OBJECTS[index % len(OBJECTS)], MOTIONS[rng.integers(len(MOTIONS))])
    clip = draw_clip(seed, "pretrain", index, pair)
    time = float(rng.uniform())
    # Off the middle more often than a moving object is, so that places are seen all over the frame.
    clip = replace(clip, center=(float(rng.uniform(0.15, 0.85)), float(rng.uniform(0.15, 0.85))))
    return render(clip, seed, [time], size)[0], _caption(clip, time, rng)


def _caption(clip: Clip, time: float, rng: np.random.Generator) -> str:
    x, y, radius = pose(clip, time)
    name = clip.object
    horizontal = "left" if x < 0.4 else "right" if x > 0.6 else ""
    vertical = "top" if y < 0.4 else "bottom" if y > 0.6 else ""
    place = " ".join(filter(None, (vertical, horizontal))) or "center"
    extent = "small" if radius < 0.18 else "big" if radius > 0.26 else "medium"
    colored = f"{_with_article(clip.color)} {name}"
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


def _with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def reworded_labels() -> tuple[list[str], list[str]]:
    """The labels of the trained pairs, and the same sentences in other words."""
    labels = [label_of(*pair) for pair in PAIRS]
    return labels, [f"a {object_name} {WORDINGS[motion]}" for object_name, motion in PAIRS]
