"""How many tokens each layer merges away."""

import operator
from collections.abc import Sequence
from numbers import Real

from alt_fast.errors import ArgumentError
from alt_fast.tome.destinations import Destinations, check_destinations

Reduction = int | float | Sequence[int | float] | tuple[int, float]
"""r for every layer, a fraction of the tokens of every layer, one r per layer, or (r, inflect)."""


def merge_schedule(r: Reduction, num_layers: int, destinations: Destinations = 2) -> list[int | float]:
    """Tokens to remove in each of `num_layers` layers (ToMe, section 4.3 and appendix D).

    r: an int (anything with `__index__`) for every layer; a float in [0, 0.5], or more as `destinations` say, the
        fraction of unprotected tokens that every layer removes; a sequence of `num_layers` ints; or (r, inflect) with
        a float inflect in [-1, 1], which changes linearly from r * (1 - inflect) in the first layer to
        r * (1 + inflect) in the last (-1: all the merging early, 0: constant, 1: late).
    destinations: `apply_patch`'s. With an int k a fraction may be up to (k - 1) / k, however that was rounded.
    Raises ArgumentError when r is negative, of another length, or inflect is out of range; TypeError when it is none of
    these.
    """
    destinations = check_destinations(destinations)
    if (whole := _whole(r)) is not None:
        schedule: list[int | float] = [whole] * num_layers
    elif isinstance(r, Real):
        k = destinations if isinstance(destinations, int) else 2  # a grid is whole in one layer only
        if not 0 <= r <= (k - 1) / k + 1e-9:  # 1 - 1 / 3 is more than 2 / 3
            share = "half of its tokens" if k == 2 else f"{k - 1} of {k} tokens"
            raise ArgumentError(
                f"r as a fraction must be in [0, {(k - 1) / k:g}], got {r}: every layer can merge {share}; "
                "destinations=k raises this, and for one layer alone r is one int per layer"
            )
        schedule = [float(r)] * num_layers
    elif not isinstance(r, Sequence) or isinstance(r, str):
        raise TypeError(f"r must be a number or a sequence of numbers, got {type(r).__name__}")
    elif len(r) == 2 and _whole(r[0]) is not None and _whole(r[1]) is None and isinstance(r[1], Real):
        mean, inflect = operator.index(r[0]), float(r[1])
        if not -1 <= inflect <= 1:
            raise ArgumentError(f"inflect must be in [-1, 1], got {inflect}")
        first = int(mean * (1 - inflect))
        step = (2 * mean - 2 * first) / max(1, num_layers - 1)
        schedule = [int(first + step * layer) for layer in range(num_layers)]
    elif len(r) == num_layers and all(_whole(value) is not None for value in r):
        schedule = [operator.index(value) for value in r]  # type: ignore[arg-type]
    else:
        raise ArgumentError(
            f"r must be one number, (r, inflect) with a float inflect, or {num_layers} ints, got {list(r)}"
        )
    if min(schedule, default=0) < 0:
        raise ArgumentError(f"r must be >= 0 in every layer, got {schedule}")
    return schedule


def _whole(value: object) -> int | None:
    """Return an int for whatever is one, NumPy's and PyTorch's too; None for the rest, bool included."""
    if isinstance(value, bool):
        raise TypeError(f"r must be a number or a sequence of numbers, got {value}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
