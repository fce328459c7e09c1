"""The ceiling of a machine: tokens dropped where a method removes them, nothing chosen and nothing merged."""

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from alt_fast.measure.observe import Counts, block_names
from alt_fast.tome.layout import Tower
from alt_fast.tome.patch import apply_patch, find_towers
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


def dropping(model: nn.Module, counts: Counts, images: Tensor) -> nn.Module:
    """Return a copy of an un-merged model that has as many tokens as `counts` say, at attention and at every MLP.

    It keeps the first ones, and does nothing else; where tokens go between blocks alone, these stay the library's own,
    but for rotary ones. images: any that the model takes. Raises ArgumentError for a model that `apply_patch` does not
    know. A tower with rotary tables of its own in every layer has none: its forward pass refuses tables of other
    lengths than the tokens.
    """
    model = copy.deepcopy(model)
    names, tower = block_names(model), next(find_towers(model))
    layouts = [tower.layouts[type(block)] for block in tower.blocks]
    if counts.attention != counts.mlp or _is_rotary(model, tower, images):
        apply_patch(model, r=0, step=DropTo(counts.mlp))
    for name, layout, before, after in zip(names, layouts, (None, *counts.mlp), counts.attention, strict=False):
        if before is None or after < before:  # before the first block, or behind an MLP
            hook = partial(_drop_before, after, 0 if layout.sequence_first else 1)
            model.get_submodule(name).register_forward_pre_hook(hook)
    return model


def _is_rotary(model: nn.Module, tower: Tower, images: Tensor) -> bool:
    """Whether the blocks turn tokens by their positions, which the library's own do for as many as they were told."""
    if not any(layout.rotary for layout in tower.layouts.values()):
        return False
    found: list[bool] = []

    def look(block: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        rotary = tower.layouts[type(block)].rotary
        found.append(rotary is not None and rotary(block, options, args[0].shape[1]) is not None)

    handles = [block.register_forward_pre_hook(look, with_kwargs=True) for block in tower.blocks]
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return any(found)


def _drop_before(kept: int, axis: int, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """axis: of tokens in a tensor, which the host gives to the first block and hands from block to block of its own."""
    tokens, *others = args
    if isinstance(tokens, Tensor):
        return (tokens.narrow(axis, 0, min(kept, tokens.shape[axis])), *others)
    return (_first(tokens, kept, tokens.x), *others)


def _drop(at: Attended, kept: int) -> tuple[Tokens, Tensor]:
    tokens = _first(at.tokens, kept, at.tokens.x + at.branch)
    return tokens, tokens.x if at.norm is None else at.norm(tokens.x)


def _first(tokens: Tokens, kept: int, x: Tensor) -> Tokens:
    turns = None if tokens.turns is None else tokens.turns._replace(table=tokens.turns.table[:, :kept])
    return replace(tokens, x=x[:, :kept], turns=turns)
