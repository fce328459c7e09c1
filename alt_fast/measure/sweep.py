"""Which method, and how much of it: speed and agreement of many settings, and those that no other one beats in both."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from alt_fast.measure.counting import inference_macs
from alt_fast.measure.faults import Patch, call, patched
from alt_fast.measure.judge import PLAIN, batch_of, race
from alt_fast.measure.outputs import agreement
from alt_fast.measure.timing import first_line


def sweep(
    model: nn.Module, patch: Patch, values: Sequence[Any], images: Tensor, batch: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """Measure a method at every value of its r, all in one race: inference, eager.

    model: un-merged, in eval mode. images: [B, 3, H, W], which speak for agreement; `batch` of them are counted and
    raced. Yields a row by value: r, flop_ratio, agreement, speedup (quartiles) and seconds; or r and "skipped", the
    reason, where the model does not take the method, or it returns what cannot be compared.
    """
    given = batch_of(images, batch)
    expected, plain_macs = call(model, images), inference_macs(model, given)
    models, agreed, ratios, skipped = {PLAIN: model}, {}, {}, {}
    for r in values:
        name = str(r)
        try:
            method = patched(model, patch, r)
            agreed[name] = agreement(call(method, images), expected)
            ratios[name] = plain_macs / inference_macs(method, given)
        except Exception as error:  # whatever a method does with a model that it does not know
            skipped[name] = first_line(error)
            continue
        if agreed[name]:
            models[name] = method
        else:
            skipped[name] = "it returns another shape than the model, or what is not finite"
    raced = race(models, given, "inference", rounds)
    skipped |= raced.skipped
    for r in values:
        name = str(r)
        if name in skipped:
            yield {"r": r, "skipped": skipped[name]}
            continue
        yield {
            "r": r,
            "flop_ratio": ratios[name],
            "agreement": agreed[name],
            "speedup": raced.ratio(PLAIN, name),
            "batch": batch,
            "seconds": {who: raced.seconds[who] for who in (PLAIN, name)},
        }


def front(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Places of the rows that no other row beats in speed and in agreement (the Pareto front), fastest first.

    Nor does the un-merged model, at speed 1 and cosine 1: what is no faster than that is not worth having.
    """
    faster = [i for i, row in enumerate(rows) if row["speedup"][1] > 1]
    order = sorted(faster, key=lambda i: (-rows[i]["speedup"][1], -rows[i]["agreement"]["cosine"]))
    found: list[int] = []
    best = -2.0  # below any cosine
    for i in order:
        if rows[i]["agreement"]["cosine"] > best:
            found.append(i)
            best = rows[i]["agreement"]["cosine"]
    return found
