"""Level 3: the videos of level 2, with training classes that only the tool tells apart.

On level 2 an actor's motion leaves one tool, or two: who knows them need not know the tool. Here it leaves five, and of
each tool every actor has a motion and its opposite. So there are 160 classes of the same twenty tools, the same 32
actors' motions, and of each class a quarter of the videos. All else is level 2's, unseen classes and corpus too.
"""

from alt_fast.data.motion_shapes.drawing import MOTIONS, OPPOSITE
from alt_fast.data.motion_shapes.level2 import (
    ACTORS,
    CARRIED,
    CORPUS,
    LAYOUTS,
    UNSEEN,
    captioned_frame,
    draw_clip,
    label_of,
    render,
    reworded_labels,
    things,
)

__all__ = [
    "CORPUS",
    "LAYOUTS",
    "TRAINED",
    "UNSEEN",
    "captioned_frame",
    "draw_clip",
    "label_of",
    "render",
    "reworded_labels",
    "things",
]

TRAINED = tuple(
    (actor, motion, tool)
    for i, tool in enumerate(CARRIED)
    for j, actor in enumerate(ACTORS)
    for forwards in [MOTIONS[2 * ((i + j) % 4)]]
    for motion in (forwards, OPPOSITE[forwards])
)
