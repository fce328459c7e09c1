"""Zero-shot scores, over all classes of a list and over those alone that were never trained on.

Label sets overlap: UCF-101 has 22 classes of Kinetics-400, HMDB-51 two. The paper and X-CLIP test all classes.
"""

from collections.abc import Sequence
from typing import Any

from alt_fast.data.annotations import Video, name_key
from alt_fast.distributed import World
from alt_fast.errors import RunError
from alt_fast.inference.predict import check_finite
from alt_fast.inference.scoring import EvalConfig, Result, summarize
from alt_fast.inference.trained import TrainedModel


def find_unseen(name: str, videos: Sequence[Video], names: Sequence[str], seen: Sequence[str]) -> list[int]:
    """Return the labels of the classes that are not among `seen`, whatever case and punctuation of their names.

    name: of the list. Raises RunError when no video is of such a class.
    """
    unseen = unseen_labels(names, seen)
    if not any(video.label in unseen for video in videos):
        raise RunError(f"{name}: every video is of a class that is trained on, so nothing in it is zero-shot")
    return unseen


def unseen_labels(names: Sequence[str], seen: Sequence[str]) -> list[int]:
    """Return the labels of the classes that are not among `seen`, whatever case and punctuation; there may be none."""
    known = {name_key(other) for other in seen}
    return [label for label, other in enumerate(names) if name_key(other) not in known]


def unseen_part(result: Result, names: Sequence[str], seen: Sequence[str]) -> dict[str, Any]:
    """Return what a test over the classes `names` says of those that are not among `seen`, the part of its result.

    As "shared" the names that are; as "unseen" videos, classes, chance, top1 and top5 of the others: their videos,
    scored among their names. Without "unseen" where no video is of such a class.
    """
    unseen = unseen_labels(names, seen)
    shared = [other for label, other in enumerate(names) if label not in unseen]
    part = result.part
    if part is None or not len(part.labels):
        return {"shared": shared}
    return {
        "shared": shared,
        "unseen": {
            "videos": len(part.labels),
            "classes": len(unseen),
            "chance": 1 / len(unseen),
            "top1": part.top(1),
            "top5": part.top(5),
        },
    }


def score_zero_shot(
    trained: TrainedModel,
    name: str,
    videos: Sequence[Video],
    names: Sequence[str],
    testing: EvalConfig,
    world: World | None = None,
) -> dict[str, Any]:
    """Test on a list of videos whose labels index `names`, some of which the model may have been trained on.

    Returns what `TrainedModel.score` does, over all classes, and `unseen_part`. Raises ArgumentError when a head that
    was not trained would score, RunError for scores that are not finite.
    """
    result = trained.test(name, videos, names, testing, world, unseen_labels(names, trained.seen_classes))
    check_finite(result.scores[result.readable])
    return summarize(name, result, len(names), testing) | unseen_part(result, names, trained.seen_classes)
