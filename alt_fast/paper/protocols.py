"""The paper's zero-shot tests and linear probes, over several splits."""

import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from alt_fast.data.annotations import Video, read_list
from alt_fast.data.batch import Failure
from alt_fast.distributed import World
from alt_fast.errors import RunError
from alt_fast.inference.features import features
from alt_fast.inference.scoring import EvalConfig, Result, summarize
from alt_fast.inference.trained import TrainedModel
from alt_fast.paper.config import ProbeConfig
from alt_fast.paper.probe import train_probe
from alt_fast.paper.splits import name_key


def zero_shot(
    trained: TrainedModel,
    lists: Sequence[str],
    classes: str | None,
    root: str | None,
    testing: EvalConfig,
    world: World,
) -> list[dict[str, Any]]:
    """Return scores on each list, whose classes the model was not trained on. Raises RunError for one that it was.

    classes: class file; by default the classes that each list names.
    """
    known = {name_key(name) for name in trained.classes}
    rows = []
    for path in lists:
        videos, names = read_list(path, classes, root, "test")
        seen = [name for name in names if name_key(name) in known]
        if seen:
            raise RunError(f"{path}: class {seen[0]!r} was trained on, so its score would not be zero-shot")
        rows.append(trained.score(path, videos, names, testing, world))
    return rows


def probe(
    trained: TrainedModel,
    splits: Sequence[tuple[str, str]],
    classes: str | None,
    root: str | None,
    testing: EvalConfig,
    config: ProbeConfig,
) -> list[dict[str, Any]]:
    """Return scores on each test list of a linear layer trained on the training list beside it (Table 6)."""
    rows = []
    for train_path, test_path in splits:
        train, names = read_list(train_path, classes, root, "train")
        test, _ = read_list(test_path, names, root, "test")
        vectors, failures = features(trained.model, trained.spec, train, testing)
        for failure in failures:
            print(f"unreadable, not trained on: {failure.path}: {failure.cause}", file=sys.stderr)
        usable = _readable(train, failures)
        labels = torch.tensor([video.label for video in train])
        layer = train_probe(vectors[usable], labels[usable], len(names), config)
        vectors, failures = features(trained.model, trained.spec, test, testing)
        readable = _readable(test, failures)
        with torch.inference_mode():
            scores = layer(vectors).softmax(-1) * readable[:, None]
        result = Result(scores, torch.tensor([video.label for video in test]), failures, readable, Counter())
        rows.append(summarize(test_path, result, len(names), testing))
    return rows


def _readable(videos: Sequence[Video], failures: Sequence[Failure]) -> torch.Tensor:
    unusable = dict(failures)
    return torch.tensor([str(video.path) not in unusable for video in videos])


def mean_and_deviation(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and sample standard deviation; None for that of a single value."""
    return {"mean": statistics.mean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}
