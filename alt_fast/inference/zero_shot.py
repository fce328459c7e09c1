"""Zero-shot scores, over all classes of a list and over those alone that were never trained on.

Label sets overlap: UCF-101 has 22 classes of Kinetics-400, HMDB-51 two. The paper and X-CLIP test all classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alt_fast.data.annotations import Video, name_key
from alt_fast.distributed import World
from alt_fast.errors import RunError
from alt_fast.inference.scoring import EvalConfig, evaluate, summarize
from alt_fast.inference.trained import TrainedModel


def find_unseen(name: str, videos: Sequence[Video], names: Sequence[str], seen: Sequence[str]) -> list[int]:
    """Return the labels of the classes that are not among `seen`, whatever case and punctuation of their names.

    name: of the list. Raises RunError when no video is of such a class.
    """
    known = {name_key(other) for other in seen}
    unseen = [label for label, other in enumerate(names) if name_key(other) not in known]
    if not any(video.label in unseen for video in videos):
        raise RunError(f"{name}: every video is of a class that is trained on, so nothing in it is zero-shot")
    return unseen


def score_zero_shot(
    trained: TrainedModel,
    name: str,
    videos: Sequence[Video],
    names: Sequence[str],
    testing: EvalConfig,
    world: World | None = None,
) -> dict[str, Any]:
    """Test on a list of videos whose labels index `names`, some of which the model may have been trained on.

    Returns what `TrainedModel.score` does, over all classes; as "shared" the names that were trained on; and as
    "unseen" videos, classes, chance, top1 and top5 of the others: their videos, scored among their names. Raises
    RunError as `find_unseen`.
    """
    unseen = find_unseen(name, videos, names, trained.classes)
    result = evaluate(trained.model, videos, trained.spec, trained.embed(names), testing, Path(name).name, world)
    return summarize(name, result, len(names), testing) | {
        "shared": [other for label, other in enumerate(names) if label not in unseen],
        "unseen": {
            "videos": sum(video.label in unseen for video in videos),
            "classes": len(unseen),
            "chance": 1 / len(unseen),
            "top1": result.top(1, unseen),
            "top5": result.top(5, unseen),
        },
    }
