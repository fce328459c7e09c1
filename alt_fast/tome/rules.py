"""The rules for rotary positions of merged tokens, by name. Without PyTorch: command lines are read at once."""

from typing import Literal, get_args

from alt_fast.errors import ArgumentError

RotaryRule = Literal["mean", "unit", "centroid", "survivor"]
"""mean: the size-weighted mean of cos and sin. unit: that, made a turn again (cos^2 + sin^2 = 1). centroid: the turn
of the mean position. survivor: the turn of the token that keeps the slot."""


def check_rule(rule: str) -> None:
    """Raise ArgumentError for a rule that is none."""
    if rule not in get_args(RotaryRule):
        raise ArgumentError(f"rotary must be one of {', '.join(get_args(RotaryRule))}, got {rule!r}")
