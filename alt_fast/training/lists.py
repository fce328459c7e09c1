"""The lists of a training job: made once, where the settings leave that to be done, and read."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alt_fast.data.annotations import CLASS_COLUMNS, Video, read_list, write_list
from alt_fast.data.batch import Failure, kinds
from alt_fast.data.check import find_absent, find_missing
from alt_fast.data.motion_shapes import DEFAULT_ROOT, list_files
from alt_fast.data.motion_shapes.generate import generate
from alt_fast.data.split import TEST_SIZE, split
from alt_fast.errors import RunError
from alt_fast.files import CLASSES, LISTS, MISSING, read_json_lines, write_csv, write_text
from alt_fast.inference.zero_shot import find_unseen
from alt_fast.progress import print_line
from alt_fast.training.config import DataConfig
from alt_fast.training.job import Lists
from alt_fast.training.quarantine import most_bad


def prepare_data(data: DataConfig, folder: Path) -> DataConfig:
    """Generate the dataset when asked to, and make the lists that the settings leave to be made.

    Those of class folders, of a split and without missing videos are written to the run folder, with their classes; a
    run that goes on takes the ones that it wrote. Returns the settings with their files filled in. Raises RunError,
    AnnotationError or FileError.
    """
    if data.generate is not None:
        root = Path(data.root or DEFAULT_ROOT)
        generate(root, data.shapes)
        files: dict[str, Any] = dict(list_files(root))
        return replace(data, generate=None, root=None, **files)
    if data.train is None:
        raise RunError("name the videos: --data.train with a list or a folder (or --data.generate motion_shapes)")
    named = {"train": data.train, "test": data.test, "unseen": data.unseen}
    folders = any(given is not None and Path(given).is_dir() for given in named.values())
    if data.test is not None and data.missing == "error" and not folders:
        return data
    written = {name: folder / LISTS[name] for name, given in named.items() if given is not None or name == "test"}
    for given in named.values():
        if given is not None and Path(given).absolute() in {path.absolute() for path in written.values()}:
            raise RunError(f"{given} is where this run would write a list of its own: choose another --out")
    if not all(path.exists() for path in written.values()):
        _make(data, folder, written)
    found: dict[str, Any] = {name: str(path) for name, path in written.items()}
    return replace(data, classes=str(folder / CLASSES), test_size=None, **found)


def _make(data: DataConfig, folder: Path, written: dict[str, Path]) -> None:
    """Write the lists, and before them their classes and what is missing."""
    assert data.train is not None
    train, classes = read_list(data.train, data.classes, data.root, "train", tell=print_line)
    lists, names = {"train": train}, {"train": classes, "test": classes, "unseen": []}
    if data.test is not None:
        lists["test"], _ = read_list(data.test, data.classes or classes, data.root, "test", tell=print_line)
    if data.unseen is not None:
        lists["unseen"], names["unseen"] = read_list(
            data.unseen, data.unseen_classes, data.root, "test", tell=print_line
        )
    if data.missing == "skip":
        _leave_out_missing(data, folder, lists)
    if data.test is None:
        share = TEST_SIZE if data.test_size is None else data.test_size
        lists["train"], lists["test"] = split(lists["train"], share, data.split_seed)
        _say_what_is_held_out(lists, classes, folder, data)
    write_csv(folder / CLASSES, CLASS_COLUMNS, enumerate(classes))
    for name, path in written.items():
        write_list(path, lists[name], names[name])


def _leave_out_missing(data: DataConfig, folder: Path, lists: dict[str, list[Video]]) -> None:
    """Take out of the lists what is missing, say how much it is, and record it. Raises RunError where all is."""
    entries = []
    for name, videos in lists.items():
        missing = find_missing(videos, data.workers, data.timeout)
        share, causes = _share(name, missing, len(videos))
        print_line(f"data.{name}: {share} are missing and left out" + (f": {causes}" if missing else ""))
        gone = {failure.path for failure in missing}
        lists[name] = [video for video in videos if str(video.path) not in gone]
        entries += [{"list": name} | failure._asdict() for failure in missing]
    write_text(folder / MISSING, "".join(json.dumps(entry) + "\n" for entry in entries))


def check_presence(data: DataConfig, lists: Lists) -> None:
    """Say how many videos of each list are not there, before training finds them one by one.

    Raises RunError where all are, or more than `data.max_bad_share` of the training videos.
    """
    for name, videos in (("train", lists.train), ("test", lists.test), ("unseen", lists.unseen)):
        absent = find_absent(videos)
        if not absent:
            continue
        share, causes = _share(name, absent, len(videos))
        if name == "train" and len(absent) > most_bad(data.max_bad_share, len(videos)):
            raise RunError(
                f"{share} of data.train are not there ({causes}), more than data.max_bad_share {data.max_bad_share} "
                "allows: --data.missing skip leaves them out"
            )
        print_line(f"data.{name}: {share} are not there: {causes}")


def say_overlap(lists: Lists) -> None:
    """Say how many videos that are tested are trained on, too: of those a score says little."""
    trained = {os.path.abspath(video.path) for video in lists.train}
    for name, videos in (("test", lists.test), ("unseen", lists.unseen)):
        both = [video.path for video in videos if os.path.abspath(video.path) in trained]
        if both:
            print_line(f"data.{name}: {len(both)} of {len(videos)} videos are trained on, too, as {both[0]}")


def _share(name: str, gone: Sequence[Failure], count: int) -> tuple[str, str]:
    """Return how many of a list's videos are gone and why, as text. Raises RunError where all are."""
    causes = ", ".join(f"{number} {kind}" for kind, number in kinds(gone).items())
    if len(gone) == count:
        windows = any("\\" in failure.path for failure in gone)
        hint = "Paths need slashes in place of backslashes" if windows else "Is data.root right?"
        raise RunError(f"none of the {count} videos of data.{name} is there ({causes}), as {gone[0].path}. {hint}")
    return f"{len(gone)} of {count} videos ({len(gone) / count:.1%})", causes


def _say_what_is_held_out(
    lists: dict[str, list[Video]], classes: Sequence[str], folder: Path, data: DataConfig
) -> None:
    """Raises RunError where that is nothing."""
    train, test = lists["train"], lists["test"]
    if not test:
        raise RunError(f"no class of {data.train} has videos of two sources, so none can be tested: name --data.test")
    share = f"{len(test)} of {len(train) + len(test)} videos ({len(test) / (len(train) + len(test)):.1%})"
    print_line(f"no data.test: {share} are held out with seed {data.split_seed}, listed in {folder / LISTS['test']}")
    untested = sorted({video.label for video in train} - {video.label for video in test})
    if untested:
        named = ", ".join(classes[label] for label in untested[:5])
        print_line(f"{len(untested)} classes have one source each and are not tested: {named}")


def read_lists(data: DataConfig) -> Lists:
    """Read every list of the job, as `prepare_data` returns them. Raises RunError or AnnotationError."""
    assert data.train is not None
    assert data.test is not None
    train, classes = read_list(data.train, data.classes, data.root, "train")
    test, _ = read_list(data.test, data.classes or classes, data.root, "test")
    unseen: list[Video] = []
    unseen_classes: list[str] = []
    if data.unseen is not None:
        unseen, unseen_classes = read_list(data.unseen, data.unseen_classes, data.root, "test")
        find_unseen(data.unseen, unseen, unseen_classes, classes)
    return Lists(train, test, classes, unseen, unseen_classes)


def count_missing(folder: Path) -> dict[str, int]:
    """Return how many videos of each list a run left out; none where it was not asked to. Raises FileError."""
    path = folder / MISSING
    return dict(Counter(entry["list"] for entry in read_json_lines(path, "list"))) if path.exists() else {}
