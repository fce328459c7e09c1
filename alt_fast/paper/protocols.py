"""The paper's zero-shot tests and linear probes, over several splits."""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from alt_fast.data.annotations import Video, keep_classes, read_list
from alt_fast.data.batch import Failure
from alt_fast.distributed import World
from alt_fast.errors import RunError
from alt_fast.inference.features import features
from alt_fast.inference.scoring import EvalConfig, Result, summarize
from alt_fast.inference.trained import TrainedModel
from alt_fast.inference.zero_shot import find_unseen, score_zero_shot
from alt_fast.paper.config import ProbeConfig
from alt_fast.paper.probe import train_probe


def zero_shot(
    trained: TrainedModel,
    tests: Sequence[tuple[str, Sequence[Video], Sequence[str]]],
    only_unseen: bool,
    testing: EvalConfig,
    world: World,
) -> list[dict[str, Any]]:
    """Return scores on (name, videos, class names) of each test as `score_zero_shot` does.

    only_unseen: leave out the classes that were trained on, with their videos. Raises RunError when nothing is left of
    a test, before any is scored.
    """
    chosen = []
    for name, videos, names in tests:
        shared: list[str] = []
        if only_unseen:
            unseen = [names[label] for label in find_unseen(name, videos, names, trained.seen_classes)]
            shared = [other for other in names if other not in unseen]
            videos, names = keep_classes(videos, names, unseen, name)
        chosen.append((name, videos, names, shared))
    rows = []
    for name, videos, names, shared in chosen:
        row = score_zero_shot(trained, name, videos, names, testing, world)
        rows.append(row | {"shared": shared or row["shared"]})
    return rows


def probe(
    trained: TrainedModel,
    splits: Sequence[tuple[str, str]],
    classes: str | None,
    root: str | None,
    testing: EvalConfig,
    config: ProbeConfig,
) -> list[dict[str, Any]]:
    """Return scores on each test list of a linear layer trained on the training list beside it (Table 6).

    "not_trained_on": training videos that cannot be read. Raises RunError where that is all of them.
    """
    rows = []
    for train_path, test_path in splits:
        train, names = read_list(train_path, classes, root, "train")
        test, _ = read_list(test_path, classes or names, root, "test")
        vectors, not_trained_on, _ = features(trained.model, trained.spec, train, testing)
        usable = _readable(train, not_trained_on)
        if not usable.any():
            raise RunError(f"{train_path}: none of its videos can be read ({not_trained_on[0].cause})")
        labels = torch.tensor([video.label for video in train])
        layer = train_probe(vectors[usable], labels[usable], len(names), config)
        vectors, failures, _ = features(trained.model, trained.spec, test, testing)
        readable = _readable(test, failures)
        with torch.inference_mode():
            scores = layer(vectors).softmax(-1) * readable[:, None]
        if not scores[readable].isfinite().all():
            raise RunError(f"{train_path}: the probe's scores are not finite, with a learning rate of {config.lr:g}")
        result = Result(scores, torch.tensor([video.label for video in test]), failures, readable, Counter())
        row = summarize(test_path, result, len(names), testing)
        rows.append(row | {"not_trained_on": [failure._asdict() for failure in not_trained_on]})
    return rows


def _readable(videos: Sequence[Video], failures: Sequence[Failure]) -> torch.Tensor:
    unusable = dict(failures)
    return torch.tensor([str(video.path) not in unusable for video in videos])


def mean_and_deviation(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and sample standard deviation; None for that of a single value."""
    return {"mean": statistics.mean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}
