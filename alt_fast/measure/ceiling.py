"""The ceiling of a machine: tokens dropped where a method removes them, nothing chosen and nothing merged."""

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from alt_fast.measure.observe import Counts, block_names
from alt_fast.tome.patch import apply_patch
from alt_fast.tome.tokens import Attended, Tokens
from alt_fast_kernels import max_r


def drop_last_step(at: Attended) -> tuple[Tokens, Tensor]:
    """Drop the last tokens, as many as `merge_step` would merge into every k-th one, the destinations."""
    assert isinstance(at.destinations, int)
    num_tokens = at.tokens.x.shape[1]
    return _drop(at, num_tokens - min(at.reduction, max_r(num_tokens, at.protected, at.destinations)))


@dataclass(frozen=True)
class DropTo:
    """A step that leaves as many tokens as it is told. kept: by layer."""

    kept: tuple[int, ...]

    def __call__(self, at: Attended) -> tuple[Tokens, Tensor]:
        """Drop the last tokens."""
        return _drop(at, self.kept[at.layer])


def dropping(model: nn.Module, counts: Counts) -> nn.Module:
    """Return a copy of an un-merged model that has as many tokens as `counts` say, at attention and at every MLP.

    It keeps the first ones. No way of removing as many tokens at these places can be faster, for it does nothing else.
    Raises ArgumentError for a model that `apply_patch` does not know. A tower with rotary tables of its own in every
    layer has none: its forward pass refuses tables of other lengths than the tokens.
    """
    model = copy.deepcopy(model)
    names = block_names(model)
    apply_patch(model, r=0, step=DropTo(counts.mlp))
    for name, before, after in zip(names, (None, *counts.mlp), counts.attention, strict=False):
        if before is None or after < before:  # before the first block, or behind an MLP
            model.get_submodule(name).register_forward_pre_hook(partial(_drop_before, after))
    return model


def _drop_before(kept: int, block: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    tokens, *others = args
    if isinstance(tokens, Tensor):  # what the host gives to the first block
        axis = 0 if block.layout.sequence_first else 1
        return (tokens.narrow(axis, 0, min(kept, tokens.shape[axis])), *others)
    return (_first(tokens, kept, tokens.x), *others)


def _drop(at: Attended, kept: int) -> tuple[Tokens, Tensor]:
    tokens = _first(at.tokens, kept, at.tokens.x + at.branch)
    return tokens, tokens.x if at.norm is None else at.norm(tokens.x)


def _first(tokens: Tokens, kept: int, x: Tensor) -> Tokens:
    turns = None if tokens.turns is None else tokens.turns._replace(table=tokens.turns.table[:, :kept])
    return replace(tokens, x=x[:, :kept], turns=turns)
