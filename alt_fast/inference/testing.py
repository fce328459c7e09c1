"""What commands that test a trained model over lists of videos do with their options, and the lists of a run."""

from pathlib import Path
from typing import Any

import yaml

from alt_fast.data.annotations import Video, read_list
from alt_fast.data.config import Loading
from alt_fast.data.motion_shapes import DEFAULT_ROOT, list_files
from alt_fast.distributed import pick_device
from alt_fast.errors import RunError
from alt_fast.files import CONFIG
from alt_fast.inference.scoring import EvalConfig
from alt_fast.inference.trained import TrainedModel, load


def open_model(arguments: Any) -> tuple[TrainedModel, EvalConfig]:
    """Do what the options of `cli.add_testing` ask for; returns the model, on its device, and how to test it.

    Raises CheckpointError, ArgumentError or CorpusError.
    """
    loading = Loading(arguments.loader, arguments.workers, arguments.timeout)
    testing = EvalConfig(arguments.batch_size, arguments.crops, arguments.clips, loading)
    trained = load(arguments.checkpoint).to(pick_device(arguments.device))
    if arguments.r is not None:
        trained.model.encoder.set_r(arguments.r)
    trained.use_corpus(arguments.corpus, arguments.categories)
    return trained, testing


def run_lists(checkpoint: Path, trained: TrainedModel) -> list[tuple[str, list[Video], list[str]]]:
    """Return (name, videos, class names) of what a run tested on. Raises RunError for what is no run folder."""
    recorded = checkpoint / CONFIG
    if not recorded.is_file():
        raise RunError(f"{checkpoint} is no run folder, so name the videos to test on: --list FILE")
    data = yaml.safe_load(recorded.read_text(encoding="utf-8"))["data"]
    if data["generate"] == "motion_shapes":
        data |= list_files(data["root"] or DEFAULT_ROOT) | {"root": None}
    lists = [(data["test"], *read_list(data["test"], trained.classes, data["root"], "test"))]
    if data["unseen"] is not None:
        lists.append((data["unseen"], *read_list(data["unseen"], data["unseen_classes"], data["root"], "test")))
    return lists
