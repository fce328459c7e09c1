"""The lists that a run tested on, as its folder records them."""

import os
from pathlib import Path
from typing import Any

from alt_fast.data.annotations import Video, read_classes, read_list
from alt_fast.data.motion_shapes import DEFAULT_ROOT, list_files
from alt_fast.errors import RunError
from alt_fast.files import CLIP, CONFIG, ENVIRONMENT, LISTS, read_json, read_yaml
from alt_fast.inference.trained import TrainedModel


def run_lists(checkpoint: Path, trained: TrainedModel) -> list[tuple[str, list[Video], list[str]]]:
    """Return (name, videos, class names) of what a run tested on. Raises RunError for what is no run folder."""
    recorded = checkpoint / CONFIG
    if not recorded.is_file():
        raise RunError(f"{checkpoint} is no run folder, so name the videos to test on: --list FILE")
    data = _data_of(recorded)
    made = {name: str(checkpoint / file) for name, file in LISTS.items() if (checkpoint / file).exists()}
    named = data | made  # of absolute paths
    if named["test"] is None:
        raise RunError(f"{checkpoint} does not say which videos were held out: name them with --list FILE")
    found = named if "test" in made else _found(checkpoint, data) | made
    classes = trained.classes if "test" in made else trained_classes(checkpoint, trained)  # what the run made has names
    lists = [(named["test"], *read_list(found["test"], classes, found["root"], "test"))]
    if named["unseen"] is not None:
        lists.append((named["unseen"], *read_list(found["unseen"], found["unseen_classes"], found["root"], "test")))
    return lists


def trained_classes(checkpoint: Path, trained: TrainedModel) -> str | list[str]:
    """Return the classes trained on as `read_list` takes them: a run's class file, whose ids numbers in lists begin at.

    The names alone where the run had none, or it is gone or names others by now.
    """
    recorded = checkpoint / CONFIG
    if recorded.is_file() and read_yaml(recorded).get("data"):
        named = _data_of(recorded).get("classes")
        for path in [] if named is None else [folder / named for folder in _starts(checkpoint)]:
            if path.is_file() and read_classes(path) == trained.classes:
                return str(path)
    return trained.classes


def _data_of(recorded: Path) -> dict[str, Any]:
    """Return where a run's lists are, by its configuration; those of generated data too. Raises FileError."""
    data: dict[str, Any] = read_yaml(recorded, "data")["data"]
    if data.get("generate") == "motion_shapes":
        data |= list_files(data.get("root") or DEFAULT_ROOT) | {"root": None}
    return data


_FILES = ("test", "unseen", "unseen_classes", "root")


def _found(checkpoint: Path, data: dict[str, Any]) -> dict[str, Any]:
    """Return where the files of these settings are, by the first folder that has the test list. Raises RunError."""
    starts, test = _starts(checkpoint), data["test"]
    for folder in starts:
        path = folder / test
        if path.exists() or ("*" in path.name and any(path.parent.glob(path.name))):  # HMDB-51's
            return {name: None if data.get(name) is None else str(folder / data[name]) for name in _FILES}
    folders = " or ".join(str(folder.absolute()) for folder in starts)
    raise RunError(f"{checkpoint} was tested on {test}, which is not in {folders}: name the videos with --list FILE")


def _starts(checkpoint: Path) -> list[Path]:
    """Return the folders that relative paths in a run's settings may start from, the likeliest first.

    It is the one that the run was started in. Where the run was moved, that one may have moved along; the present one
    is the last, and the only one of runs that do not say. Raises FileError.
    """
    present, recorded = Path(), checkpoint / ENVIRONMENT
    record = read_json(recorded) if recorded.is_file() else {}
    if "started_in" not in record:
        return [present]
    before, now = record["run"], str(checkpoint.resolve())
    started = Path(record["started_in"])
    if started == Path.cwd():
        started = present
    if before == now:
        return [started]
    along = Path(os.path.normpath(os.path.join(now, os.path.relpath(record["started_in"], before))))
    return [along, started, present]


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
            named = str(config["model"]["pretrained"])
            files = [folder / named for folder in _starts(checkpoint)]
            return next((str(path) for path in files if path.is_file()), named)  # else a tag of open_clip
    raise RunError(f"{checkpoint} does not say which CLIP it started from: name it with --tower FILE")
