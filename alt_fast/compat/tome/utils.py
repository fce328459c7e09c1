"""Schedules in the forms that ToMe's `model.r` takes."""

import operator
from numbers import Real

from alt_fast.errors import ArgumentError
from alt_fast.tome.schedule import merge_schedule


def parse_r(num_layers: int, r: int | list[int] | tuple[int, float]) -> list[int]:
    """Tokens to remove in each of `num_layers` layers (ToMe, section 4.3 and appendix D).

    r: an int for every layer; a list of ints, one per layer, where layers that it does not reach remove nothing; or a
        tuple (r, inflect) with inflect in [-1, 1], which changes linearly from r * (1 - inflect) in the first layer to
        r * (1 + inflect) in the last.
    Raises ArgumentError when it is none of these, too long or negative.
    """
    try:
        if isinstance(r, list) and len(r) <= num_layers:
            schedule = merge_schedule([operator.index(layer) for layer in r] + [0] * (num_layers - len(r)), num_layers)
        elif isinstance(r, tuple) and len(r) == 2 and isinstance(r[1], Real):
            schedule = merge_schedule((operator.index(r[0]), float(r[1])), num_layers)
        elif hasattr(r, "__index__"):
            schedule = merge_schedule(r, num_layers)
        else:
            raise TypeError
    except TypeError:
        raise ArgumentError(
            f"r must be an int, a list of at most {num_layers} ints or a tuple (r, inflect), got {r!r}"
        ) from None
    return [int(layer) for layer in schedule]
