"""Matchings that return the functions `merge` and `unmerge`, and what ToMe's users do with these.

The published package returns closures; here they are values that hold a plan of `alt_fast_kernels.match`, so that
`merge_wavg` can take the fused weighted mean. None of the choices carries a gradient, all merging does.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import SupportsIndex

import torch
from torch import Tensor

import alt_fast_kernels as kernels
from alt_fast.errors import ArgumentError
from alt_fast_kernels import MergePlan
from alt_fast_kernels.dispatch import without_autocast

MODES = ("mean", "sum", "amax", "amin", "prod")
"""What `merge` makes of the tokens of a slot: the reductions of torch.scatter_reduce."""

ROWS = 1024
"""Sources whose scores exist at a time."""

Function = Callable[..., Tensor]


def do_nothing(x: Tensor, mode: str | None = None) -> Tensor:
    """Return x: the merge and the unmerge of a matching that has nothing to merge."""
    return x


@dataclass(frozen=True, eq=False)
class Merge:
    """The `merge` of a matching."""

    plan: MergePlan

    def __call__(self, x: Tensor, mode: str = "mean") -> Tensor:
        """Merge x [B, N, C] -> [B, N', C], in its dtype, counting every token once.

        mode: "mean", "sum", "amax", "amin" or "prod" of the tokens of every slot; differentiable.
        Raises ArgumentError on another mode or shape.
        """
        self._check(x)
        if mode not in MODES:
            raise ArgumentError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if mode == "mean" and x.is_floating_point():
            return kernels.merge(x, torch.ones_like(x[..., 0], dtype=_count_dtype(x)), self.plan)[0]
        slot = self.plan.slot.long().unsqueeze(-1).expand_as(x)
        slots = x.new_zeros(x.shape[0], self.plan.num_slots, x.shape[2])
        return slots.scatter_reduce(1, slot, x, mode, include_self=False)

    def weighted(self, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Size-weighted mean of x [B, N, C], and summed size [B, N, 1], each in its dtype; counted in fp32 or fp64."""
        self._check(x)
        x, total = kernels.merge(x, size[..., 0].to(_count_dtype(x)), self.plan)
        return x, total.unsqueeze(-1).to(size.dtype)

    def _check(self, x: Tensor) -> None:
        batch, num_tokens = self.plan.slot.shape
        if x.ndim != 3 or x.shape[:2] != (batch, num_tokens):
            raise ArgumentError(f"x must be [{batch}, {num_tokens}, C], as the metric was, got shape {tuple(x.shape)}")


@dataclass(frozen=True, eq=False)
class Unmerge:
    """The `unmerge` of a matching."""

    plan: MergePlan

    def __call__(self, x: Tensor) -> Tensor:
        """Give every token the value of its slot: x [B, N', C] -> [B, N, C]. Raises ArgumentError on another shape."""
        batch, num_slots = self.plan.slot.shape[0], self.plan.num_slots
        if x.ndim != 3 or x.shape[:2] != (batch, num_slots):
            raise ArgumentError(f"x must be [{batch}, {num_slots}, C], merged tokens, got shape {tuple(x.shape)}")
        return kernels.unmerge(x, self.plan.slot)


def bipartite_soft_matching(
    metric: Tensor, r: SupportsIndex, class_token: bool = False, distill_token: bool = False
) -> tuple[Function, Function]:
    """Merge the r most similar pairs of an even and an odd token (ToMe, section 3).

    metric: [B, N, C] floating point, compared by cosine similarity.
    r: tokens to remove, at most half of those that are not protected; with r <= 0 both functions return their argument.
    class_token: the first token neither merges nor is merged into. distill_token: nor does the second.
    Returns merge(x, mode="mean"), [B, N, C] -> [B, N - r, C], and unmerge(x), the way back. Merged tokens are the even
    ones that nothing happened to, by index behind a class token and else by falling similarity, then the odd ones; a
    distillation token comes second.
    Raises ArgumentError on a metric of another shape or with values that are not finite, on an r that is no int and on
    a distillation token without a class token.
    """
    _check_metric(metric)
    if distill_token and not class_token:
        raise ArgumentError("distill_token=True needs class_token=True: it is the token behind the class token")
    protected = class_token + distill_token
    r = min(_int("r", r), kernels.max_r(metric.shape[1], protected))
    if r <= 0:
        return do_nothing, do_nothing
    plan = _match(metric, r, protected, 2)
    return Merge(plan), Unmerge(plan)


def kth_bipartite_soft_matching(metric: Tensor, k: SupportsIndex) -> tuple[Function, Function]:
    """Merge all tokens into every k-th one, at k - 1, 2k - 1 and so on: N -> N // k.

    metric: [B, N, C] floating point. k: at most N; with k <= 1 both functions return their argument. k = 2 is
        `bipartite_soft_matching` with r = N / 2 for an even N. The N % k last tokens merge, too.
    Returns merge and unmerge; merged tokens are in order. Raises ArgumentError naming what does not fit, and on a
    metric with values that are not finite.
    """
    _check_metric(metric)
    k = _int("k", k)
    num_tokens = metric.shape[1]
    if k <= 1:
        return do_nothing, do_nothing
    if k > num_tokens:
        raise ArgumentError(f"k must be at most the number of tokens, {num_tokens}, got {k}")
    plan = _match(metric, num_tokens, 0, torch.arange(k - 1, num_tokens, k, device=metric.device))
    return Merge(plan), Unmerge(plan)


def random_bipartite_soft_matching(metric: Tensor, r: SupportsIndex) -> tuple[Function, Function]:
    """Merge r random tokens of each image into their most similar ones among the others: a split to compare with.

    metric: [B, N, C] floating point. r: below N; with r <= 0 both functions return their argument. The tokens are
        drawn from PyTorch's generator of the metric's device: torch.manual_seed repeats them.
    Returns merge, [B, N, C] -> [B, N - r, C], and unmerge; merged tokens are in order. Raises ArgumentError naming what
    does not fit.
    """
    _check_metric(metric)
    r = _int("r", r)
    batch, num_tokens = metric.shape[:2]
    if r <= 0:
        return do_nothing, do_nothing
    if r >= num_tokens:
        raise ArgumentError(f"r must be below the number of tokens, {num_tokens}, got {r}")
    drawn = torch.rand(batch, num_tokens, device=metric.device).argsort(1)
    plan = _join(metric, drawn[:, :r].sort(1).values, drawn[:, r:].sort(1).values)
    return Merge(plan), Unmerge(plan)


def merge_wavg(merge: Function, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Merge x [B, N, C] by the mean weighted with size (ToMe, section 3).

    merge: of a matching, or any function of tokens and mode. size: [B, N, 1], patches in each token; None: one each.
    Returns x' [B, N', C] in the dtype of x, and the summed sizes [B, N', 1] in that of size, or of x when it is None.
    Sizes that require a gradient get one; others are counted in fp32 or better, and where only tokens of size 0 meet
    the one that they join stays as it is. Raises ArgumentError on a size of another shape.
    """
    if size is None:
        size = torch.ones_like(x[..., :1])
    if size.shape != (*x.shape[:-1], 1):
        raise ArgumentError(f"size must be {(*x.shape[:-1], 1)} to fit x, got shape {tuple(size.shape)}")
    if merge is do_nothing:
        return x, size
    if isinstance(merge, Merge) and x.is_floating_point() and not size.requires_grad:
        return merge.weighted(x, size)
    total = merge(size, mode="sum")
    return merge(x * size, mode="sum") / total, total


def merge_source(merge: Function, x: Tensor, source: Tensor | None = None) -> Tensor:
    """Follow tokens through a merge: which of the N first ones each token stands for.

    merge: of a matching, or any function of tokens and mode. x: [B, N, C], of which shape and device are read.
    source: of the layers before, [B, N', N]; None in the first.
    Returns a matrix of zeros and ones, fp32 [B, N'', N] with one 1 in every column.
    """
    if source is None:
        batch, num_tokens = x.shape[:2]
        source = torch.eye(num_tokens, device=x.device).expand(batch, -1, -1)
    return merge(source, mode="amax")


def _match(metric: Tensor, r: int, protected: int, destinations: int | Tensor) -> MergePlan:
    try:
        return kernels.match(metric, r, protected, destinations)
    except ValueError as error:  # shapes are checked
        raise ArgumentError("metric must be finite, got NaN, infinity or a norm beyond fp32") from error


@torch.no_grad()
def _join(metric: Tensor, source: Tensor, target: Tensor) -> MergePlan:
    """Plan to merge every source into the most similar target: source [B, S] and target [B, T], int64, ascending."""
    batch, num_slots = target.shape
    partner = _most_similar(metric, source, target)
    by_slot = partner.argsort(dim=1, stable=True)
    joined = partner.gather(1, by_slot)
    order = torch.cat([target, source.gather(1, by_slot)], 1)
    slots = torch.arange(num_slots, device=metric.device).expand(batch, -1)
    slot = torch.empty_like(order).scatter(1, order, torch.cat([slots, joined], 1))
    start = order.new_zeros(batch, num_slots + 1).scatter_add(1, joined + 1, torch.ones_like(joined)).cumsum(1)
    return MergePlan(slot.int(), order.int(), start.int(), num_slots)


def _most_similar(metric: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """For every source the place in `target` of the token with the largest cosine similarity, [B, S]."""
    with without_autocast(metric):
        unit = torch.nn.functional.normalize(metric.to(torch.promote_types(metric.dtype, torch.float32)), dim=-1)
        sources, targets = (
            unit.gather(1, tokens.unsqueeze(-1).expand(-1, -1, unit.shape[2])) for tokens in (source, target)
        )
        found = [(rows @ targets.transpose(1, 2)).argmax(-1) for rows in sources.split(ROWS, 1)]
    return torch.cat(found, 1)


def _check_metric(metric: Tensor) -> None:
    if metric.ndim != 3 or metric.shape[2] == 0 or not metric.is_floating_point():
        raise ArgumentError(
            f"metric must be [B, N, C] floating point, got {metric.dtype} of shape {tuple(metric.shape)}"
        )


def _int(name: str, value: SupportsIndex) -> int:
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:  # tensors and arrays have an __index__ that raises it
        pass
    raise ArgumentError(f"{name} must be an int, got {value!r}")


def _count_dtype(x: Tensor) -> torch.dtype:
    """Of the sizes that `alt_fast_kernels.merge` takes with x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
