"""How many tokens each layer should merge: chosen by measurement, on a model and images, within a budget of MACs."""

import copy
import math
from bisect import bisect_left
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.polynomial.legendre import legvander
from numpy.typing import NDArray
from torch import Tensor, nn

from alt_fast.errors import ArgumentError
from alt_fast.measure.outputs import as_tensor
from alt_fast.measure.tower_cost import TowerCost, tower_cost
from alt_fast.progress import Progress
from alt_fast.tome.patch import apply_patch, find_towers, remove_patch
from alt_fast.tome.schedule import Reduction, merge_schedule

OPTIONS = ("destinations", "find_tower", "prop_attn", "rotary")
"""Options of `apply_patch` that change what merging costs, or what it does to the output."""

BATCH = 32
"""Images in one pass."""

DEGREE = 3
"""Of the polynomials of the depth that the search moves along, at most."""

STEPS = (1.0, 0.5, 0.25)
"""How far it moves at most in a layer, in units of what layers remove on average."""

Shape = NDArray[np.float64]
"""[L]: what each layer removes, relative to the others."""


def fit_schedule(
    model: nn.Module,
    images: Tensor,
    speedup: float | None = None,
    *,
    macs: float | None = None,
    r: Reduction | None = None,
    multiple: int = 1,
    max_evaluations: int = 60,
    **options: Any,
) -> list[int]:
    """Choose r of every layer by measurement, for `apply_patch`.

    Of the schedules tried, all within the budget, it is the one with which the model's outputs agree best with the
    un-merged model's: by the mean cosine over the images, of embeddings or logits; features of several axes are one
    vector. The constant schedule is tried first, so on these images the result agrees no less. Nothing is random. The
    model stays as it is, patched or not.

    model: as `apply_patch` takes it, with one vision tower.
    images: [B, 3, H, W], floating, on the model's device; or videos, as the model takes them, B first.
    speedup, macs, r: the budget, exactly one: MACs of the un-merged model over those of the merged one, >= 1; MACs of
        one image; or those of merging by r, `apply_patch`'s. It is one of FLOPs: what the clock makes of it depends on
        the machine.
    multiple: the tokens behind every layer that merges are a multiple of it (8 and 16 suit the hardware). Above 1 the
        schedule tried first is the one nearest to the constant.
    max_evaluations: how often all images may pass the merged model.
    options: of `apply_patch`: prop_attn, rotary, find_tower, and destinations as an int.

    Returns one int per layer. Raises ArgumentError naming what cannot be used: no budget or two, one that no schedule
    keeps, with the largest speed-up that one does; images of another kind; no tower, or several. UncountedError when
    the model runs ops whose MACs nobody counts.
    """
    _check(model, images, multiple, max_evaluations, options)
    given = {name: value for name, value in (("speedup", speedup), ("macs", macs), ("r", r)) if value is not None}
    if len(given) != 1:
        raise ArgumentError(f"exactly one of speedup, macs and r must be given, got {' and '.join(given) or 'none'}")
    model = remove_patch(_copy(model)).eval()
    towers = list(find_towers(model, options.get("find_tower")))
    if len(towers) > 1:
        raise ArgumentError(f"{type(model).__name__} holds {len(towers)} vision towers: fit one at a time")
    num_layers = len(towers[0].blocks) if towers else 1  # of none, `apply_patch` says what it knows
    unmerged = _outputs(model, images)
    if not unmerged.isfinite().all():
        raise ArgumentError("images must have finite outputs, and those of the un-merged model are not")
    cost = tower_cost(model, images[:1], num_layers, **options)
    budget, first = _budget(cost, multiple, *given.popitem())

    def disagreement(schedule: list[int]) -> float:
        """1 - the mean cosine, exact where that is near 1."""
        apply_patch(model, schedule, **options)
        return float((_outputs(model, images) - unmerged).square().sum(1).mean() / 2)

    search = _Search(budget, disagreement, first)
    progress = Progress(islice(search.run(), max_evaluations), "fit", "schedule", total=max_evaluations)
    for lowest in progress:
        progress.annotate(f"agreement {1 - lowest:.5f}")
    return search.best


def _check(model: nn.Module, images: Tensor, multiple: int, max_evaluations: int, options: Mapping[str, Any]) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(images, Tensor) or images.ndim < 4 or not len(images) or not images.is_floating_point():
        given = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ArgumentError(f"images must be a floating tensor [B, 3, H, W] of at least one image, got {given}")
    for name, value in (("multiple", multiple), ("max_evaluations", max_evaluations)):
        if not isinstance(value, Integral) or value < 1:
            raise ArgumentError(f"{name} must be an int >= 1, got {value}")
    for name in options:
        if name not in OPTIONS:
            raise ArgumentError(f"options must be of {', '.join(OPTIONS)}, got {name}")
    if not isinstance(options.get("destinations", 2), Integral):
        raise ArgumentError(f"destinations must be an int for a fit, got {options['destinations']}")


def _copy(model: nn.Module) -> nn.Module:
    """A copy to patch: of the modules, around the same weights, which need no gradient in it."""
    weights: dict[int, Tensor] = {id(x): nn.Parameter(x.detach(), requires_grad=False) for x in model.parameters()}
    return copy.deepcopy(model, weights | {id(x): x for x in model.buffers()})


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    """What the model returns for images, as vectors of unit length [B, F], fp32."""
    with torch.no_grad():
        vectors = [as_tensor(model(batch)).flatten(1).float() for batch in images.split(BATCH)]
    return F.normalize(torch.cat(vectors))


@dataclass(frozen=True)
class _Budget:
    """Schedules that keep to so many MACs of one image, each merging layer leaving a multiple of so many tokens."""

    cost: TowerCost
    macs: float
    multiple: int

    def within(self, shape: Shape) -> list[int] | None:
        """The schedule of this shape that removes the fewest tokens; None where none of it keeps to the budget."""
        share = np.cumsum(shape) / shape.sum()
        enough = self.cost.num_tokens * self.cost.num_layers  # for every layer, of equal shares, to merge all it can
        total = bisect_left(range(enough), True, key=lambda n: self.cost.macs(self.spread(share * n)) <= self.macs)
        return self.spread(share * total) if total < enough else None

    def spread(self, removed: Shape) -> list[int]:
        """r per layer, so that so many tokens [L], or a few less, are removed up to each."""
        schedule, num_tokens = [], self.cost.num_tokens
        for tokens in self.cost.num_tokens - np.round(removed):
            wanted = max(tokens, num_tokens - self.cost.max_r(num_tokens))
            left = min(num_tokens, math.ceil(wanted / self.multiple) * self.multiple)
            schedule.append(num_tokens - left)
            num_tokens = left
        return schedule


def _budget(cost: TowerCost, multiple: int, name: str, value: Any) -> tuple[_Budget, list[int]]:
    """The budget, and the constant schedule that keeps it: r itself, where that is given and leaves multiples."""
    plain, constant, macs = cost.macs([0] * cost.num_layers), [1] * cost.num_layers, value
    if name == "speedup":
        if not value >= 1:
            raise ArgumentError(f"speedup must be >= 1, got {value}")
        macs = plain / value
    elif name == "r":
        constant = _whole(cost, merge_schedule(value, cost.num_layers, cost.destinations))
        macs = cost.macs(constant)
    budget = _Budget(cost, macs, multiple)
    if name == "r" and (multiple == 1 or not any(constant)):
        return budget, constant
    least = cost.macs(budget.spread(np.full(cost.num_layers, cost.num_tokens)))
    first = budget.within(np.array(constant, np.float64)) if least <= macs else None
    if first is None:
        by = f", by multiples of {multiple}," if multiple > 1 else ""
        raise ArgumentError(
            f"{name}={value} cannot be reached: merging{by} saves this model a factor of {plain / least:.2f} at most"
        )
    return budget, first


def _whole(cost: TowerCost, schedule: Sequence[int | float]) -> list[int]:
    """A schedule as the blocks take it: fractions are of the tokens that there are, and none is more than can merge."""
    whole, num_tokens = [], cost.num_tokens
    for r in schedule:
        asked = int(r * (num_tokens - cost.protected)) if isinstance(r, float) else r
        whole.append(min(asked, cost.max_r(num_tokens)))
        num_tokens -= whole[-1]
    return whole


class _Search:
    """Descent in the shape of a schedule, each shape standing for its schedule within the budget.

    Shapes move along Legendre polynomials of the depth: late layers against early ones, the ends against the middle,
    and so on. A move that lowers the disagreement is kept, and made again; when none does, moves become smaller. Few
    directions, all smooth, need few evaluations, and leave little room to fit what is of these images only.
    """

    def __init__(self, budget: _Budget, disagreement: Callable[[list[int]], float], first: list[int]) -> None:
        self.budget, self.disagreement = budget, disagreement
        self.best, self.lowest = first, math.inf
        self.shape: Shape = np.array(first) / np.mean(first) if any(first) else np.ones(len(first))
        self.seen = set[tuple[int, ...]]()

    def run(self) -> Generator[float, None, None]:
        """Evaluate one schedule after another; yields the lowest disagreement so far."""
        yield from self._evaluate(self.shape, self.best)
        num_layers = len(self.best)
        directions = legvander(np.linspace(-1, 1, num_layers), min(DEGREE, num_layers - 1))[:, 1:].T
        for step in STEPS:
            moved = True
            while moved:
                moved = False
                for move in (sign * step * direction for direction in directions for sign in (1, -1)):
                    while (yield from self._go(move)):
                        moved = True

    def _go(self, move: Shape) -> Generator[float, None, bool]:
        """Go where a move leads, and return True, if that is better."""
        shape = (self.shape + move).clip(0)
        schedule = self.budget.within(shape)
        if schedule is None or tuple(schedule) in self.seen:
            return False
        return (yield from self._evaluate(shape / shape.mean(), schedule))

    def _evaluate(self, shape: Shape, schedule: list[int]) -> Generator[float, None, bool]:
        self.seen.add(tuple(schedule))
        disagreement = self.disagreement(schedule)
        better = disagreement < self.lowest
        if better:
            self.shape, self.best, self.lowest = shape, schedule, disagreement
        yield self.lowest
        return better
