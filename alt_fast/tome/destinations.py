"""Which tokens of a tower others may merge into, where it is not every other one. Without PyTorch, as `rules`."""

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import SupportsIndex

from alt_fast.errors import ArgumentError


@dataclass(frozen=True)
class OnePerCell:
    """One patch of every cell of a grid: all others may merge away in one layer.

    grid: patches along each axis, the slowest first: (rows, columns), or (frames, rows, columns) of a video, where a
        tubelet of several frames is one. cell: how many along each axis make a cell.

    The last patch of every whole cell receives: at the ragged end of an axis none does. OnePerCell((14, 14), (2, 2))
    keeps at least 49 of 196 patches, OnePerCell((8, 14, 14), (4, 1, 1)), or OnePerCell.frames(4, (8, 14, 14)), those of
    two frames of eight. Raises TypeError for what are no ints, NumPy's included, and ArgumentError for a cell that does
    not fit the grid, or is one patch.
    """

    grid: tuple[int, ...]
    cell: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("grid", "cell"):
            object.__setattr__(self, name, _ints(name, getattr(self, name)))
        fits = len(self.grid) == len(self.cell) and all(
            1 <= step <= extent for step, extent in zip(self.cell, self.grid, strict=True)
        )
        if not fits or math.prod(self.cell) < 2:
            raise ArgumentError(
                f"cell must have as many axes as grid, fit into it and hold two patches at least, got {self.cell} in "
                f"{self.grid}"
            )

    @classmethod
    def frames(cls, k: int, grid: tuple[int, int, int]) -> "OnePerCell":
        """All patches of one frame in k. grid: (frames, rows, columns)."""
        return cls(grid, (k, 1, 1))


def _ints(name: str, given: Iterable[SupportsIndex]) -> tuple[int, ...]:
    try:
        return tuple(operator.index(value) for value in given)
    except TypeError:
        raise TypeError(f"{name} must be a tuple of ints, got {given!r}") from None


Destinations = int | OnePerCell
"""An int k: every k-th of the tokens that a layer has. OnePerCell: see `apply_patch`."""


def check_destinations(destinations: Destinations) -> Destinations:
    """Return them, an int as Python's. Raises TypeError, or ArgumentError for an int below 2."""
    if isinstance(destinations, OnePerCell):
        return destinations
    wrong = TypeError(f"destinations must be an int or alt_fast.OnePerCell, got {type(destinations).__name__}")
    if isinstance(destinations, bool):
        raise wrong
    try:
        k = operator.index(destinations)
    except TypeError:  # a tensor has `__index__`, whatever its shape
        raise wrong from None
    if k < 2:
        raise ArgumentError(f"destinations must be >= 2, every k-th token, or alt_fast.OnePerCell, got {k}")
    return k
