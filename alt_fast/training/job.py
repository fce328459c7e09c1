"""What every stage of a training job shares."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from alt_fast.corpus import Corpus
from alt_fast.data.annotations import Video
from alt_fast.distributed import World
from alt_fast.model.text import PROMPTS
from alt_fast.progress import print_line
from alt_fast.training.config import TrainConfig
from alt_fast.training.run_log import RunLog
from alt_fast.training.states import SaveEvery


@dataclass(frozen=True)
class Lists:
    """Videos and class names of a job; empty where it has none."""

    train: list[Video]
    test: list[Video]
    classes: list[str]
    unseen: list[Video]
    unseen_classes: list[str]


@dataclass(frozen=True)
class Job:
    """Settings, data, device and processes of a job, its folder and its log (the main process's)."""

    config: TrainConfig
    folder: Path
    device: torch.device
    lists: Lists
    corpus: Corpus | None
    log: RunLog | None
    world: World

    def print_line(self, message: str) -> None:
        """Print a line for the person who watches, from one process."""
        if self.world.main:
            print_line(message)

    @property
    def saving(self) -> SaveEvery:
        return SaveEvery(self.config.checkpoint_every, self.config.keep)

    @property
    def templates(self) -> Sequence[str]:
        return PROMPTS[self.config.templates]
