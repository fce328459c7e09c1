"""Motion Shapes: a generated video dataset of shapes doing things, real files that decode everywhere (VP9 in WebM).

A label is an object and a motion, "a star circling clockwise". Every motion is directional: played backwards, a clip
shows the opposite motion, so that a single frame cannot give the class away. Some (object, motion) pairs are never
trained on: they are the zero-shot test. Train, test, unseen and pretraining draw from separate random streams and never
share a seed or a background.

    alt-fast data generate --out data/motion_shapes
"""

from pathlib import Path

DEFAULT_ROOT = "data/motion_shapes"


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
