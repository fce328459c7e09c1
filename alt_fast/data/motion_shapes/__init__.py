"""Motion Shapes: a generated video dataset of things that move, real files that decode everywhere (VP9 in WebM).

Level 1 (`level1`): an object does something, "a star circling clockwise". Level 2 (`level2`): an actor does something
with a tool, "a robot moving left with a kettle", and what zero-shot classes show was never trained on. Level 3
(`level3`): likewise, and the tool alone tells the trained classes of an actor's motion apart. Every motion is
directional: played backwards, a clip shows the opposite motion, so that a single frame cannot give the class away.
Train, test, unseen and pretraining draw from separate random streams and never share a seed or a background.

    alt-fast data generate --out data/motion_shapes
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from alt_fast.data.motion_shapes import level1, level2, level3
from alt_fast.data.motion_shapes.drawing import Captioned, Image8, Thing

DEFAULT_ROOT = "data/motion_shapes"

ALIGNED = ("object", "body", "scene")
"""Categories of the corpora that a still frame can show: motions it cannot."""


class Level(Protocol):
    """What a level is; classes and clips are its own.

    CORPUS: name of its text corpus. LAYOUTS: further texts, by groups of which one can be true of a frame: where
    something is, how large it is.
    """

    CORPUS: str
    LAYOUTS: tuple[tuple[str, ...], ...]
    TRAINED: tuple[Any, ...]
    UNSEEN: tuple[Any, ...]

    def label_of(self, cls: Any, /) -> str:
        """The sentence that names a class."""

    def draw_clip(self, seed: int, split: str, index: int, cls: Any, /) -> Any:
        """The random choices of clip `index` of a split."""

    def render(self, clip: Any, /, seed: int, times: Sequence[float], size: int) -> Image8:
        """Frames [len(times), size, size, 3] uint8 RGB of a clip at times in [0, 1]."""

    def things(self, clip: Any, /, time: float, size: int) -> list[Thing]:
        """What is in a frame, the background first, with the corpus's units that are true of it."""

    def captioned_frame(self, seed: int, index: int, size: int) -> Captioned:
        """A frame that CLIP's pretraining sees."""

    def reworded_labels(self, rng: np.random.Generator) -> tuple[list[str], list[str]]:
        """Labels, none of an unseen class, and the same sentences in other words."""


LEVELS: dict[int, Level] = {1: level1, 2: level2, 3: level3}


def list_files(root: str | Path) -> dict[str, str]:
    """Return the lists and class files below the dataset's folder, as `training.config.DataConfig` names them."""
    names = {
        "train": "train.txt",
        "test": "test.txt",
        "classes": "classes.csv",
        "unseen": "unseen.txt",
        "unseen_classes": "unseen_classes.csv",
    }
    return {name: str(Path(root) / file) for name, file in names.items()}
