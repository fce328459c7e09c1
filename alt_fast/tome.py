"""The merge schedule: how many tokens each layer removes."""

from collections.abc import Sequence

Reduction = int | Sequence[int] | tuple[int, float]
"""r for every layer, one r per layer, or (r, inflect)."""


def merge_schedule(r: Reduction, num_layers: int) -> list[int]:
    """Tokens to remove in each of `num_layers` layers (ToMe, section 4.3 and appendix D).

    r: an int for every layer; a sequence of `num_layers` ints; or (r, inflect) with a float inflect in [-1, 1], which
        changes linearly from r * (1 - inflect) in the first layer to r * (1 + inflect) in the last (-1: all the merging
        early, 0: constant, 1: late).
    Raises ValueError when r is negative, of another length, or inflect is out of range.
    """
    if isinstance(r, int):
        schedule = [r] * num_layers
    elif len(r) == 2 and isinstance(r[1], float):
        mean, inflect = int(r[0]), r[1]
        if not -1 <= inflect <= 1:
            raise ValueError(f"inflect must be in [-1, 1], got {inflect}")
        first = int(mean * (1 - inflect))
        step = (2 * mean - 2 * first) / max(1, num_layers - 1)
        schedule = [int(first + step * layer) for layer in range(num_layers)]
    elif len(r) == num_layers:
        schedule = [int(value) for value in r]
    else:
        raise ValueError(f"r must be one int, (r, inflect) with a float inflect, or {num_layers} ints, got {list(r)}")
    if min(schedule) < 0:
        raise ValueError(f"r must be >= 0 in every layer, got {schedule}")
    return schedule
