"""How a model does on a list of videos: every video once, shared out over the processes."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alt_fast.data.annotations import Video
from alt_fast.data.batch import Failure
from alt_fast.data.config import ClipSpec, Loading
from alt_fast.data.dataset import EvalClips, batched
from alt_fast.data.loader import Loader, open_backend
from alt_fast.distributed import World
from alt_fast.errors import check_at_least
from alt_fast.model.alt import ALT
from alt_fast.model.config import Head, check_head
from alt_fast.model.encoder import MergeSchedule
from alt_fast.progress import Progress


@dataclass(frozen=True)
class EvalConfig:
    """How videos are tested: `crops` x `clips` views each, clips at once, how they are loaded, and who scores."""

    batch_size: int = 32
    crops: int = 1
    clips: int = 1
    loading: Loading = field(default_factory=Loading)
    head: Head = "alt"

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1, crops=1, clips=1)
        check_head(self.head)


@dataclass(frozen=True)
class Result:
    """Scores of every video of a list, in its order.

    scores: [N, I] fp32, probabilities averaged over the views; rows of unreadable videos are zero. labels: [N].
    failures: unreadable videos; readable: [N] bool. What cannot be read counts as wrong, so that leaving out hard files
    cannot raise a score. ways: how many clips were decoded how. part: of the videos of some classes alone, scored among
    these and labelled by their place in them, where `evaluate` was asked for it; its ways are those of all.
    """

    scores: Tensor
    labels: Tensor
    failures: list[Failure]
    readable: Tensor
    ways: Counter[str]
    part: "Result | None" = None

    def top(self, k: int) -> float:
        """Share of videos whose class is among the k highest scores (k at most the number of classes)."""
        best = self.scores.topk(min(k, self.scores.shape[1])).indices
        hits = (best == self.labels[:, None]).any(1) & self.readable
        return hits.float().mean().item()


class MeanScores(NamedTuple):
    """mean: [N, width] fp32, of each video's views. causes: of unreadable videos, by path. ways: clips by decoder."""

    mean: Tensor
    causes: dict[str, str]
    ways: Counter[str]


def mean_over_views(
    clips: EvalClips,
    testing: EvalConfig,
    device: torch.device,
    forward: Callable[[Tensor], Tensor],
    width: int,
    name: str | None = None,
) -> MeanScores:
    """Run every view of every video. forward: [B, T, 3, H, W] to [B, width]. name: the progress bar's; None: no bar."""
    loading = testing.loading
    backend, _ = open_backend(loading.loader, clips, device, threads=max(1, loading.workers))
    loader = Loader(clips, list(batched(clips.keys(), testing.batch_size)), backend, loading)
    results = [torch.zeros(0, width)]
    causes: dict[str, str] = {}
    with closing(iter(loader)) as batches:  # an error that a session keeps would keep what decodes, too
        for batch in Progress(batches, name or "", "batch", len(loader), shown=name is not None):
            with torch.inference_mode():
                results.append(forward(batch.video).float().cpu())
            causes |= dict(batch.failures)
    mean = torch.cat(results).view(len(clips.videos), clips.views, width).mean(1)
    return MeanScores(mean, causes, backend.counts)


def evaluate(
    model: ALT,
    videos: Sequence[Video],
    spec: ClipSpec,
    classes: Tensor,
    testing: EvalConfig,
    name: str = "test",
    world: World | None = None,
    schedule: MergeSchedule | None = None,
    within: Sequence[int] | None = None,
) -> Result:
    """Score videos against class embeddings [I, d]; each once, whatever the number of processes that share them.

    schedule: tokens to merge away by layer; by default the model's own. within: labels of classes that their videos are
    scored among as well, as if there were no others: `Result.part`.
    """
    world = world or World()
    model.eval()
    clips = EvalClips(videos[world.rank :: world.size], spec, testing.crops, testing.clips)

    asked = list(within or ())
    apart = asked not in ([], list(range(len(classes))))  # else the scores of all are theirs
    lists = [classes, classes[asked]] if apart else [classes]
    width = sum(map(len, lists))

    def probabilities(video: Tensor) -> Tensor:
        seen = model.look(video, testing.head, schedule)
        return torch.cat([model.score(seen, part, testing.head) for part in lists], 1)

    shown = name if world.main else None
    own = mean_over_views(clips, testing, classes.device, probabilities, width, shown)
    mean = torch.zeros(len(videos), width)
    causes: dict[str, str] = {}
    ways: Counter[str] = Counter()
    for rank, share in enumerate(world.gather(own)):
        mean[rank :: world.size] = share.mean
        causes |= share.causes
        ways += share.ways
    readable = torch.tensor([str(video.path) not in causes for video in videos])
    labels = torch.tensor([video.label for video in videos])
    failures = [Failure(path, cause) for path, cause in causes.items()]
    mean *= readable[:, None]
    result = Result(mean[:, : len(classes)], labels, failures, readable, ways)
    if within is None:
        return result
    scores = mean[:, len(classes) :] if apart else result.scores[:, asked]
    rows, labels = (labels[:, None] == torch.tensor(asked, dtype=labels.dtype)).nonzero().unbind(1)
    paths = {str(videos[row].path) for row in rows.tolist()}
    failures = [failure for failure in failures if failure.path in paths]
    return replace(result, part=Result(scores[rows], labels, failures, readable[rows], ways))


def summarize(name: str, result: Result, num_classes: int, testing: EvalConfig) -> dict[str, Any]:
    """Return accuracy on one list (fractions of 1), with what is needed to read it, as plain data."""
    return {
        "list": name,
        "videos": len(result.labels),
        "views": testing.crops * testing.clips,
        "head": testing.head,
        "classes": num_classes,
        "chance": 1 / num_classes,
        "top1": result.top(1),
        "top5": result.top(5),
        "unreadable": [failure._asdict() for failure in result.failures],
        "ways": dict(result.ways),
    }
