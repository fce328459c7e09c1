"""MACs of a model by how many tokens its tower keeps in each layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alt_fast.errors import ArgumentError
from alt_fast.measure.counting import counting
from alt_fast.tome.patch import apply_patch
from alt_fast.tome.tokens import Attended, Tokens, merge_step
from alt_fast_kernels import max_r
from alt_fast_kernels.cost import match_cost


@dataclass(frozen=True, eq=False)
class TowerCost:
    """What a model costs for one image, its tower's layers merging as a schedule says.

    num_tokens, protected: of the first layer. head_dim: of the keys that are matched. destinations: `apply_patch`'s, an
    int. before: MACs up to the first layer's merge. behind: [3, L], of each layer the polynomial in the tokens that it
    leaves, its square term first, of the MACs from its merge to the next layer's, or to the model's end.
    """

    num_tokens: int
    protected: int
    head_dim: int
    destinations: int
    before: int
    behind: NDArray[np.float64]

    @property
    def num_layers(self) -> int:
        """How many layers may merge."""
        return self.behind.shape[1]

    def max_r(self, num_tokens: int) -> int:
        """Return the largest r of a layer with so many tokens."""
        return max_r(num_tokens, self.protected, self.destinations)

    def macs(self, schedule: Sequence[int]) -> float:
        """MACs of one image, by the r of each layer, none above `max_r`."""
        macs, num_tokens, left = float(self.before), self.num_tokens, []
        for r in schedule:
            if r:
                listed = None if self.destinations == 2 else num_tokens - self.protected - self.max_r(num_tokens)
                macs += match_cost(1, num_tokens, 1, self.head_dim, self.protected, 0, listed).macs
            num_tokens -= r
            left.append(num_tokens)
        powers = np.array(left, dtype=np.float64) ** np.array([[2], [1], [0]])
        return macs + float((self.behind * powers).sum())


class _Marks:
    """A merging step that notes the MACs so far, before it and behind it, and what the first layer has.

    macs: two of each layer. num_tokens, protected, head_dim: of the first layer.
    """

    def __init__(self, so_far: Callable[[], int]) -> None:
        self.so_far, self.macs = so_far, list[int]()
        self.num_tokens = self.protected = self.head_dim = 0

    def __call__(self, at: Attended) -> tuple[Tokens, Tensor]:
        if at.layer == 0:
            self.num_tokens, self.protected, self.head_dim = at.tokens.x.shape[1], at.protected, at.key.shape[-1]
        self.macs.append(self.so_far())
        merged = merge_step(at)
        self.macs.append(self.so_far())
        return merged


def tower_cost(model: nn.Module, image: Tensor, num_layers: int, **options: Any) -> TowerCost:
    """Count three passes of one image [1, ...]: the first layer merges nothing, half of what it can, and all of it.

    model: with one tower of so many layers; it is left patched. options: of `apply_patch`, destinations an int. Raises
    ArgumentError when a pass does not run each layer once, or has too few tokens to merge; UncountedError.
    """
    destinations = options.get("destinations", 2)

    def count(r: int) -> _Marks:
        with counting() as so_far, torch.no_grad():
            marks = _Marks(so_far)
            apply_patch(model, [r] + [0] * (num_layers - 1), step=marks, **options)(image)
            marks.macs.append(so_far())
        return marks

    plain = count(0)
    if len(plain.macs) != 2 * num_layers + 1:
        raise ArgumentError(
            f"model must run each of its tower's {num_layers} layers once, got {len(plain.macs) // 2} runs in a pass"
        )
    most = max_r(plain.num_tokens, plain.protected, destinations)
    if most < 2:
        raise ArgumentError(
            f"images must make some tokens to merge, got {plain.num_tokens} with {plain.protected} protected"
        )
    merged = {0: plain, most // 2: count(most // 2), most: count(most)}
    left = [plain.num_tokens - r for r in merged]
    between = [np.subtract(marks.macs[2::2], marks.macs[1::2]) for marks in merged.values()]
    return TowerCost(
        plain.num_tokens, plain.protected, plain.head_dim, destinations, plain.macs[0], np.polyfit(left, between, 2)
    )
