"""Write the files of Motion Shapes."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from alt_fast.data.config import MotionShapesConfig
from alt_fast.data.encode import write_video
from alt_fast.data.motion_shapes.draw import PAIRS, UNSEEN_PAIRS, draw_clip, label_of, render
from alt_fast.errors import ArgumentError, FileError
from alt_fast.files import make_folder, read_json, write_csv, write_json, write_text
from alt_fast.progress import Progress

_FORMAT_VERSION = 1


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
        found = read_json(manifest, "complete")
        if {**found, "complete": None} != {**content, "complete": None}:
            raise ArgumentError(f"{root} holds another dataset ({found}); asked for {content}: choose another folder")
        if found["complete"]:
            return
    make_folder(root)
    write_json(manifest, {**content, "complete": False})
    jobs = [
        (root, config, split, index, pair)
        for split, pairs, count in _splits(config)
        for index, pair in enumerate(pair for pair in pairs for _ in range(count))
        if not (root / split / f"{index:05d}.webm").exists()
    ]
    for split, _, _ in _splits(config):
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
    for split, pairs, count in _splits(config):
        lines = (f"{split}/{i * count + k:05d}.webm {i}\n" for i in range(len(pairs)) for k in range(count))
        write_text(root / f"{split}.txt", "".join(lines))
    for name, pairs in (("classes.csv", PAIRS), ("unseen_classes.csv", UNSEEN_PAIRS)):
        write_csv(root / name, ("id", "name"), ((i, label_of(*pair)) for i, pair in enumerate(pairs)))
    write_json(manifest, {**content, "complete": True})


def _splits(config: MotionShapesConfig) -> list[tuple[str, tuple[tuple[str, str], ...], int]]:
    """(split, classes, videos per class)"""
    plan = [
        ("train", PAIRS, config.train_per_class),
        ("test", PAIRS, config.test_per_class),
        ("unseen", UNSEEN_PAIRS, config.test_per_class),
        ("few_shot", UNSEEN_PAIRS, config.few_shot_per_class),
    ]
    return [entry for entry in plan if entry[2]]


class _Writer(Dataset[int]):
    """Writes a job's video when it is asked for."""

    def __init__(self, jobs: Sequence[tuple[Path, MotionShapesConfig, str, int, tuple[str, str]]]) -> None:
        self.jobs = jobs

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, number: int) -> int:
        root, config, split, index, pair = self.jobs[number]
        clip = draw_clip(config.seed, split, index, pair)
        frames = render(clip, config.seed, np.linspace(0, 1, config.frames).tolist(), config.size)
        write_video(root / split / f"{index:05d}.webm", frames)
        return number
