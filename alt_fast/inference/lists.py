"""The lists that a run tested on, as its folder records them."""

from pathlib import Path
from typing import Any

from alt_fast.data.annotations import Video, read_classes, read_list
from alt_fast.data.motion_shapes import DEFAULT_ROOT, list_files
from alt_fast.errors import RunError
from alt_fast.files import CLIP, CONFIG, LISTS, read_yaml
from alt_fast.inference.trained import TrainedModel


def run_lists(checkpoint: Path, trained: TrainedModel) -> list[tuple[str, list[Video], list[str]]]:
    """Return (name, videos, class names) of what a run tested on. Raises RunError for what is no run folder."""
    recorded = checkpoint / CONFIG
    if not recorded.is_file():
        raise RunError(f"{checkpoint} is no run folder, so name the videos to test on: --list FILE")
    data = _data_of(recorded)
    made = {name: str(checkpoint / file) for name, file in LISTS.items() if (checkpoint / file).exists()}
    data |= made  # of absolute paths
    if data["test"] is None:
        raise RunError(f"{checkpoint} does not say which videos were held out: name them with --list FILE")
    classes = trained.classes if "test" in made else trained_classes(checkpoint, trained)  # what the run made has names
    lists = [(data["test"], *read_list(data["test"], classes, data["root"], "test"))]
    if data["unseen"] is not None:
        lists.append((data["unseen"], *read_list(data["unseen"], data["unseen_classes"], data["root"], "test")))
    return lists


def trained_classes(checkpoint: Path, trained: TrainedModel) -> str | list[str]:
    """Return the classes trained on as `read_list` takes them: a run's class file, whose ids numbers in lists begin at.

    The names alone where the run had none, or it is gone or names others by now.
    """
    recorded = checkpoint / CONFIG
    if recorded.is_file() and read_yaml(recorded).get("data"):
        path = _data_of(recorded).get("classes")
        if path is not None and Path(path).is_file() and read_classes(path) == trained.classes:
            return str(path)
    return trained.classes


def _data_of(recorded: Path) -> dict[str, Any]:
    """Return where a run's lists are, by its configuration; those of generated data too. Raises FileError."""
    data: dict[str, Any] = read_yaml(recorded, "data")["data"]
    if data.get("generate") == "motion_shapes":
        data |= list_files(data.get("root") or DEFAULT_ROOT) | {"root": None}
    return data


def starting_tower(checkpoint: Path, named: str | None = None) -> str:
    """Return the CLIP weights that a model is interpolated from, as ModelConfig.pretrained names them.

    named: those that its user names; by default those that its run started from. Raises RunError where the run does not
    say, and for one whose training has interpolated already.
    """
    recorded = checkpoint / CONFIG
    config = read_yaml(recorded) if recorded.is_file() else {}
    if (share := config.get("optim", {}).get("interpolate", 1)) != 1:
        raise RunError(
            f"{checkpoint} was trained with optim.interpolate {share:g}: its image tower lies between CLIP's and the "
            "trained one already, and the trained one was not kept"
        )
    if named:
        return named
    if config:
        config = read_yaml(recorded, "model", "pretrain")
        if config["pretrain"] is not None:
            return str(checkpoint / CLIP)
        if config["model"]["pretrained"] is not None:
            return str(config["model"]["pretrained"])
    raise RunError(f"{checkpoint} does not say which CLIP it started from: name it with --tower FILE")
