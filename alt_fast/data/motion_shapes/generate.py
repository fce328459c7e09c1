"""Write the files of Motion Shapes."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from alt_fast.data.annotations import CLASS_COLUMNS
from alt_fast.data.config import MotionShapesConfig
from alt_fast.data.encode import write_video
from alt_fast.data.motion_shapes import LEVELS
from alt_fast.errors import ArgumentError, FileError
from alt_fast.files import make_folder, read_json, write_csv, write_json, write_text
from alt_fast.progress import Progress

_FORMAT_VERSION = 1

CLASS_FILES = ("classes.csv", "unseen_classes.csv")


def generate(root: str | Path, config: MotionShapesConfig, workers: int | None = None) -> None:
    """Write the dataset under `root`; files already there are kept, so an interrupted call can be repeated.

    Leaves {train,test,unseen}.txt (`path label` lines), few_shot.txt when asked for,
    {classes,unseen_classes}.csv (`id,name`) and dataset.json.
    Raises ArgumentError when `root` holds a dataset of another configuration, FileError when it cannot be written.
    """
    root = Path(root)
    manifest = root / "dataset.json"
    content = {"dataset": "motion_shapes", "version": _FORMAT_VERSION, **asdict(config)}
    if manifest.exists():
        found = {"level": 1, **read_json(manifest, "complete")}  # there was one level once
        if {**found, "complete": None} != {**content, "complete": None}:
            raise ArgumentError(f"{root} holds another dataset ({found}); asked for {content}: choose another folder")
        if found["complete"]:
            return
    else:
        _check_empty(root, config)
    make_folder(root)
    write_json(manifest, {**content, "complete": False})
    jobs = [
        (root, config, split, index, cls)
        for split, classes, count in splits(config)
        for index, cls in enumerate(cls for cls in classes for _ in range(count))
        if not (root / split / f"{index:05d}.webm").exists()
    ]
    for split, _, _ in splits(config):
        make_folder(root / split)
    # A DataLoader rather than a process pool: its workers end when their parent is killed.
    writers = DataLoader(
        _Writer(jobs), batch_size=None, num_workers=os.cpu_count() or 1 if workers is None else workers
    )
    try:
        for _ in Progress(writers, "Motion Shapes", "video"):
            pass
    except FileError as e:  # a DataLoader's process adds its traceback to the message
        raise FileError(str(e).strip().splitlines()[-1].partition("FileError: ")[2] or str(e)) from e
    for split, classes, count in splits(config):
        lines = (f"{split}/{i * count + k:05d}.webm {i}\n" for i in range(len(classes)) for k in range(count))
        write_text(root / f"{split}.txt", "".join(lines))
    level = LEVELS[config.level]
    for name, classes in zip(CLASS_FILES, (level.TRAINED, level.UNSEEN), strict=True):
        write_csv(root / name, CLASS_COLUMNS, ((i, level.label_of(cls)) for i, cls in enumerate(classes)))
    write_json(manifest, {**content, "complete": True})


def _check_empty(root: Path, config: MotionShapesConfig) -> None:
    """Raise ArgumentError for a folder with files of somebody else's in the place of the dataset's."""
    splits_there = [name for name, _, _ in splits(config)]
    for name in (*splits_there, *(f"{split}.txt" for split in splits_there), *CLASS_FILES):
        if (root / name).exists():
            raise ArgumentError(f"{root} holds {name}, and no generated dataset that it is of: choose another folder")


def splits(config: MotionShapesConfig) -> list[tuple[str, tuple[Any, ...], int]]:
    """Return the splits there are: name, classes, videos of each."""
    level = LEVELS[config.level]
    plan = [
        ("train", level.TRAINED, config.train_per_class),
        ("test", level.TRAINED, config.test_per_class),
        ("unseen", level.UNSEEN, config.test_per_class),
        ("few_shot", level.UNSEEN, config.few_shot_per_class),
    ]
    return [entry for entry in plan if entry[2]]


class _Writer(Dataset[int]):
    """Writes a job's video when it is asked for."""

    def __init__(self, jobs: Sequence[tuple[Path, MotionShapesConfig, str, int, Any]]) -> None:
        self.jobs = jobs

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, number: int) -> int:
        root, config, split, index, cls = self.jobs[number]
        level = LEVELS[config.level]
        clip = level.draw_clip(config.seed, split, index, cls)
        frames = level.render(clip, config.seed, times_of(config.frames), config.size)
        write_video(root / split / f"{index:05d}.webm", frames)
        return number


def times_of(frames: int) -> list[float]:
    """When the frames of a video are, in [0, 1]."""
    return np.linspace(0, 1, frames).tolist()
