"""Average pooling: what merging by similarity has to beat."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alt_fast.errors import ArgumentError
from alt_fast.methods.plans import plan_for_all, tokens_left
from alt_fast.tome.patch import Model, apply_patch
from alt_fast.tome.schedule import Reduction, merge_schedule
from alt_fast.tome.tokens import Attended, Tokens


@dataclass(frozen=True)
class Pool:
    """A step that merges the patches of every 2 x 2 of the grid once, and does nothing in all other layers.

    r: what ToMe would remove in every layer, an int, or a fraction of the layer's tokens. Pooling stands in the layer
    where the sum over layers of the tokens that enter an MLP is nearest to ToMe's, or in none; of two as near it is the
    earlier. At the ragged end of an odd side a cell has two patches, or one. Raises what `check_r` raises, and in the
    forward pass ArgumentError, where the patches are not those of `grid` (rows, columns); None for a square.
    """

    r: int | float
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_r(self.r)

    def __call__(self, at: Attended) -> tuple[Tokens, Tensor]:
        """Pool, if this is the layer."""
        batch, num_tokens = at.tokens.x.shape[:2]
        if at.tokens.merges or self.r == 0:
            return at.keep()
        rows, columns = self._grid(num_tokens - at.protected)
        if at.layer != pool_layer((rows, columns), at.protected, at.num_layers, self.r):
            return at.keep()
        token = torch.arange(num_tokens, device=at.tokens.x.device)
        row, column = token[: rows * columns] // columns, token[: rows * columns] % columns
        corner = at.protected + (row - row % 2) * columns + column - column % 2
        keeper = torch.cat((token[: at.protected], corner))
        return at.merge(plan_for_all(keeper, at.protected + num_cells((rows, columns)), batch))

    def _grid(self, num_patches: int) -> tuple[int, int]:
        side = math.isqrt(num_patches)
        grid = (side, side) if self.grid is None else self.grid
        if math.prod(grid) != num_patches:
            expected = "a square" if self.grid is None else f"a grid of {grid[0]} x {grid[1]}"
            raise ArgumentError(f"pooling is over {expected} of patches, and there are {num_patches}: Pool(r, grid)")
        return grid


def check_r(r: Reduction) -> None:
    """Raise ArgumentError for an r that is not one number for every layer, TypeError for what is no number."""
    if isinstance(r, Sequence) and not isinstance(r, str):
        raise ArgumentError(f"r of pooling is one number for all layers, since it pools once, got {r}")
    merge_schedule(r, 1)


def num_cells(grid: tuple[int, int]) -> int:
    """The cells of 2 x 2 patches that cover a grid (rows, columns)."""
    rows, columns = grid
    return ((rows + 1) // 2) * ((columns + 1) // 2)


def pool_layer(grid: tuple[int, int], protected: int, num_layers: int, r: int | float) -> int:
    """The layer in which pooling comes nearest to ToMe's tokens over all layers; `num_layers` where that is in none."""
    num_tokens = protected + math.prod(grid)
    gain = math.prod(grid) - num_cells(grid)
    removed = num_layers * num_tokens - sum(tokens_left(num_tokens, protected, num_layers, r))
    return min(range(num_layers + 1), key=lambda layer: abs((num_layers - layer) * gain - removed))


def pooled_tokens(num_tokens: int, protected: int, num_layers: int, r: int | float) -> list[int]:
    """Tokens that enter the MLP of each layer, of a square of patches. Raises as `check_r` does."""
    check_r(r)
    side = math.isqrt(num_tokens - protected)
    first = pool_layer((side, side), protected, num_layers, r)
    return [num_tokens] * first + [protected + num_cells((side, side))] * (num_layers - first)


def apply_pool(model: Model, r: int | float) -> Model:
    """Make every tower in `model` pool once, by r as `Pool` has it; returns the model, patched in place."""
    return apply_patch(model, 0, step=Pool(r))
