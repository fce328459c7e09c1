"""Which method, and how much of it: speed and agreement of many settings, and those that no other one beats in both."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from alt_fast.measure.faults import Patch, call, patched
from alt_fast.measure.judge import PLAIN, inference_macs, race
from alt_fast.measure.outputs import agreement


def sweep(
    model: nn.Module, patch: Patch, values: Sequence[Any], images: Tensor, batch: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """Measure a method at every value of its r, all in one race: inference, eager.

    model: un-merged, in eval mode. images: [B, 3, H, W], which speak for agreement; `batch` of them are raced. Yields
    a row by value: r, flop_ratio, agreement, speedup (quartiles) and seconds. Raises what the method raises.
    """
    models = {str(r): patched(model, patch, r) for r in values}
    expected, plain_macs = call(model, images), inference_macs(model, images[:1])
    agreed = {name: agreement(call(method, images), expected) for name, method in models.items()}
    macs = {name: inference_macs(method, images[:1]) for name, method in models.items()}
    raced = race({PLAIN: model, **models}, images, "inference", batch, rounds)
    for r in values:
        name = str(r)
        yield {
            "r": r,
            "flop_ratio": plain_macs / macs[name],
            "agreement": agreed[name],
            "speedup": raced.ratio(PLAIN, name),
            "batch": batch,
            "seconds": {who: raced.seconds[who] for who in (PLAIN, name)},
        }


def front(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Places of the rows that no other row beats in speed and in agreement (the Pareto front), fastest first."""
    order = sorted(range(len(rows)), key=lambda i: (-rows[i]["speedup"][1], -rows[i]["agreement"]["cosine"]))
    found: list[int] = []
    best = -2.0  # below any cosine
    for i in order:
        if rows[i]["agreement"]["cosine"] > best:
            found.append(i)
            best = rows[i]["agreement"]["cosine"]
    return found
