"""What flows between blocks that merge, and the merge itself: the step between attention and MLP."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node
from torch.utils.checkpoint import checkpoint

from alt_fast.errors import ArgumentError
from alt_fast.tome.destinations import Destinations, OnePerCell
from alt_fast.tome.rotary import Turns, merge_turns, with_empty
from alt_fast.tome.rules import RotaryRule
from alt_fast_kernels import MergePlan, Rotary, compose, match, max_r, merge, unmerge
from alt_fast_kernels.lane import aside

HOOKS = ("register_hook", "register_post_accumulate_grad_hook", "retain_grad")
"""A tensor's, that ask for its gradient."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens between two blocks. To a host's own code they are its tensor [B, N, C], with no token missing.

    A host that reads what a block returns (`forward_intermediates`, `output_hidden_states`, a model cut short) gets
    `dense()`: every patch has the features of its token, where it was in the grid.

    x: [B, N', C]. token_size: [B, N'] fp32, patches in each token; None before the first merge, when all are 1.
    merges: the plan of every merge so far, and what the tokens before it weighed [B, N]: their sizes, as a rule. turns:
    rotary positions, in hosts that have them. unmerges: whether a host's own code sees all N tokens, or the N' merged
    ones. sequence_first: it sees [N, B, C].
    """

    x: Tensor
    token_size: Tensor | None = None
    merges: tuple[tuple[MergePlan, Tensor], ...] = ()
    turns: Turns | None = None
    unmerges: bool = True
    sequence_first: bool = False

    def source(self) -> Tensor:
        """The token [B, N] int32 that each of the first N tokens is in now."""
        if not self.merges:
            return torch.arange(self.x.shape[1], dtype=torch.int32, device=self.x.device).expand(self.x.shape[0], -1)
        first, weight = self.merges[0]
        source = first.slot[:, : weight.shape[1]]  # without the empty tokens that a plan may add
        for plan, _ in self.merges[1:]:
            source = compose(source, plan.slot)
        return source

    def sizes(self) -> Tensor:
        """`token_size`, also before the first merge."""
        if self.token_size is not None:
            return self.token_size
        return torch.ones(self.x.shape[:2], dtype=torch.float32, device=self.x.device)

    def dense(self) -> Tensor:
        """What a host's own code sees: [B, N, C], or x itself without `unmerges`."""
        x = unmerge(self.x, self.source()) if self.merges and self.unmerges else self.x
        return x.transpose(0, 1) if self.sequence_first else x

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if function is checkpoint:  # torch.compile asks, of what eager mode does not: the tokens go along as they are
            return checkpoint(lambda **given: args[0](*args[1:], **given), **options)
        name = getattr(function, "__name__", "")
        changed = args[0] if args and (_is_in_place(name) or options.get("inplace")) else options.get("out")
        if isinstance(changed, Tokens):
            _refuse_in_place(name)
        return function(*as_dense(args), **as_dense(options))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(Tensor, name):  # copy and pickle ask before there is an x
            raise AttributeError(name)
        if _is_in_place(name):
            _refuse_in_place(name)
        if name in HOOKS:
            raise ArgumentError(
                f"merged tokens have no {name}, which would be a copy's that nothing reads: hook a norm1 instead"
            )
        return getattr(self.dense(), name)

    def __getitem__(self, index: Any) -> Tensor:
        return self.dense()[index]

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        _refuse_in_place("assignment")

    def __len__(self) -> int:
        return len(self.dense())


def _is_in_place(name: str) -> bool:
    """Whether PyTorch's method of this name changes its tensor: add_."""
    return name.endswith("_") and not name.startswith("__")


def _refuse_in_place(name: str) -> NoReturn:
    raise ArgumentError(
        f"merged tokens cannot be changed in place, by {name}, as it would be lost: return a new tensor from the hook"
    )


def _refused(name: str) -> Callable[..., NoReturn]:
    return lambda self, other: _refuse_in_place(name)


def _as_dense(name: str) -> Callable[..., Tensor]:
    def operate(self: Tokens, *others: Any) -> Tensor:
        return getattr(self.dense(), name)(*as_dense(others))

    return operate


for _name in (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow", "matmul", "rmatmul"),
    *("neg", "abs", "lt", "le", "gt", "ge", "eq", "ne"),
):
    setattr(Tokens, f"__{_name}__", _as_dense(f"__{_name}__"))
for _name in ("iadd", "isub", "imul", "itruediv", "ipow", "imatmul"):
    setattr(Tokens, f"__{_name}__", _refused(f"__{_name}__"))


# Activation checkpointing finds the devices whose random state it has to restore by the tensors in a pytree.
register_pytree_node(
    Tokens, lambda tokens: ([tokens.x], tokens), lambda leaves, tokens: replace(tokens, x=next(iter(leaves)))
)


def dense_outputs(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Make tensors of the Tokens in what a model returns: a forward hook of every module that holds blocks."""
    return as_dense(output)


def _holds_tokens(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, Tokens) or (isinstance(value, tuple | list) and any(map(_holds_tokens, value)))


def as_dense(value: Any) -> Any:
    """The value with every Tokens in it made a tensor; transformers' ModelOutput is changed."""
    if isinstance(value, Tokens):
        return value.dense()
    if not _holds_tokens(value):
        return value
    if isinstance(value, tuple | list):
        items = map(as_dense, value)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)  # a named tuple, or another
    if type(value) is dict:
        return {name: as_dense(item) for name, item in value.items()}
    for name, item in value.items():
        value[name] = as_dense(item)
    return value


@dataclass(frozen=True, eq=False)
class Attended:
    """Where a `Step` stands in a block: behind attention, before its output is added.

    tokens: the block's. branch: [B, N, C], attention's output. key: [B, N, H, D], what was matched by, before positions
    turn it. r: tokens to remove, or a fraction of those that are not protected. protected: leading tokens that never
    merge. layer, num_layers: which block of its tower, from 0. norm: the MLP's, or None. rule: what becomes of rotary
    positions. destinations: which tokens others merge into, `apply_patch`'s. attention, normed, rotary: the host's
    module, what it was given [B, N, C], and what turned its queries and keys, for steps that need more than keys.
    class_token: whether the first of the protected, if there is one, is a class token. prop_attn: whether attention
    counts patches.
    """

    tokens: Tokens
    branch: Tensor
    key: Tensor
    r: int | float
    protected: int = 0
    layer: int = 0
    num_layers: int = 1
    norm: nn.Module | None = None
    rule: RotaryRule = "mean"
    destinations: Destinations = 2
    attention: nn.Module | None = None
    normed: Tensor | None = None
    rotary: Rotary | None = None
    class_token: bool = True
    prop_attn: bool = True

    @property
    def reduction(self) -> int:
        """How many tokens to remove, of as many as there are: a share is rounded down."""
        if not isinstance(self.r, float):
            return self.r
        count = self.tokens.x.shape[1] - self.protected
        if isinstance(count, torch.SymInt):  # torch.export leaves whole numbers open, and fixes what int() is asked for
            numerator, denominator = Fraction(self.r).limit_denominator(10**6).as_integer_ratio()
            return count * numerator // denominator
        return int(self.r * count)

    def keep(self) -> tuple[Tokens, Tensor]:
        """Add the branch, and remove no token."""
        x = self.tokens.x + self.branch
        return replace(self.tokens, x=x), x if self.norm is None else self.norm(x)

    def merge(self, plan: MergePlan, weight: Tensor | None = None) -> tuple[Tokens, Tensor]:
        """Add the branch, and merge as a plan says.

        plan: of these tokens, and of empty ones behind them, of size 0, where it has more. weight: [B, N] fp32 >= 0,
        what tokens count in the mean of their slot, instead of their sizes: 0 for a token that is dropped into the one
        that keeps the slot. Sizes add up all the same.
        """
        tokens, before = self.tokens, self.tokens.sizes()
        counts = before if weight is None else weight
        x, branch = with_empty(tokens.x, plan), with_empty(self.branch, plan)
        if self.norm is None:
            x, size = merge(x, with_empty(counts, plan), plan, branch)
            normed = x
        else:
            x, size, normed = merge(x, with_empty(counts, plan), plan, branch, norm=self.norm)
        if weight is not None:
            size = torch.zeros_like(size).scatter_add(1, plan.slot.long(), with_empty(before, plan))
        turns = None if tokens.turns is None else merge_turns(tokens.turns, counts, plan, self.rule)
        merges = (*tokens.merges, (plan, counts))
        return replace(tokens, x=x, token_size=size, merges=merges, turns=turns), normed


Step = Callable[[Attended], tuple[Tokens, Tensor]]
"""Stands between attention and MLP: adds the branch, leaves fewer tokens, and returns norm(x') too, the MLP's input."""


def merge_step(at: Attended) -> tuple[Tokens, Tensor]:
    """x + branch, merged by similarity of keys (ToMe, section 3).

    Raises ArgumentError when these tokens are no grid of destinations.
    """
    receiving = 2 if at.reduction <= 0 else _receiving(at.destinations, at.tokens, at.protected)
    if min(at.reduction, max_r(at.tokens.x.shape[1], at.protected, receiving)) <= 0:
        return at.keep()

    def plan() -> MergePlan:
        return match(at.key, at.reduction, at.protected, receiving)

    return at.merge(plan() if isinstance(receiving, Tensor) else aside(at.key, plan))  # a grid's tokens were made here


def _receiving(destinations: Destinations, tokens: Tokens, protected: int) -> int | Tensor:
    """What `match` is given: of a grid its tokens [D] int64 in the first layer that merges, every other one later."""
    if isinstance(destinations, int):
        return destinations
    return 2 if tokens.merges else _of_grid(destinations, tokens.x, protected)


def _of_grid(cells: OnePerCell, x: Tensor, protected: int) -> Tensor:
    """The last patch of every whole cell [D] int64, given tokens [B, N, C]."""
    if x.shape[1] - protected != math.prod(cells.grid):
        raise ArgumentError(
            f"destinations are of a grid of {' x '.join(map(str, cells.grid))} patches, and the first layer that "
            f"merges has {x.shape[1] - protected} of them"
        )
    place = torch.zeros(1, dtype=torch.int64, device=x.device)
    for extent, step in zip(cells.grid, cells.cell, strict=True):
        along = torch.arange(step - 1, extent, step, device=x.device)
        place = (place[:, None] * extent + along).flatten()
    return protected + place
