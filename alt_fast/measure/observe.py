"""What a patched model does with its tokens, seen from outside: how many its blocks attend to, and their MLPs get."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alt_fast.errors import ArgumentError
from alt_fast.tome.patch import find_towers


class Counts(NamedTuple):
    """Tokens of every block, in order: at attention, and at the MLP."""

    attention: tuple[int, ...]
    mlp: tuple[int, ...]


class Shape(NamedTuple):
    """Of a tower: tokens before its first block, how many of them are no patches, and blocks."""

    num_tokens: int
    protected: int
    num_layers: int


def tower_shape(model: nn.Module, images: Tensor) -> Shape:
    """Look at an un-merged model. Raises ArgumentError as `block_names` does."""
    blocks = block_names(model)
    with torch.inference_mode():
        counts = count_tokens(model, blocks, images, lambda: model(images))
    return Shape(counts.attention[0], next(find_towers(model)).protected, len(blocks))


def block_names(model: nn.Module) -> list[str]:
    """Names of the blocks of the one vision tower in `model`. Raises ArgumentError for none, and for several."""
    towers = list(find_towers(model))
    if len(towers) != 1:
        raise ArgumentError(f"model must have one vision tower that apply_patch knows, got {len(towers)}")
    names = {module: name for name, module in model.named_modules()}
    return [names[block] for block in towers[0].blocks]


def count_tokens(model: nn.Module, blocks: list[str], images: Tensor, run: Callable[[], object]) -> Counts:
    """Count the tokens that pass through a model while `run` runs it on `images`.

    blocks: `block_names` of the model as it was. A block's first leaf module is before attention (a norm, or the
    projection), its last one in or behind the MLP. Raises ArgumentError when a block is gone, none of its modules ran,
    or they did not run on the whole batch: there is nothing to see, then.
    """
    modules = dict(model.named_modules())
    if gone := [name for name in blocks if name not in modules]:
        raise ArgumentError(f"method must keep the names of the model's blocks, and there is no {', '.join(gone)}")
    seen: dict[str, list[torch.Size]] = {name: [] for name in blocks}
    with _hooks(modules, seen):
        run()
    blind = [name for name, shapes in seen.items() if not shapes]
    if blind:
        raise ArgumentError(f"method must keep the blocks of the model, and nothing ran in {', '.join(blind)}")
    first, last = (tuple(_tokens(shapes[at], len(images)) for shapes in seen.values()) for at in (0, -1))
    return Counts(first, last)


@contextmanager
def _hooks(modules: dict[str, nn.Module], seen: dict[str, list[torch.Size]]) -> Iterator[None]:
    handles = []
    for name, shapes in seen.items():

        def note(module: nn.Module, args: tuple[Any, ...], shapes: list[torch.Size] = shapes) -> None:
            if args and isinstance(args[0], Tensor) and args[0].ndim >= 2:
                shapes.append(args[0].shape)

        leaves = [part for part in modules[name].modules() if not list(part.children())]
        handles += [leaf.register_forward_pre_hook(note) for leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tokens(shape: torch.Size, batch: int) -> int:
    """N of [B, N, C], [N, B, C] or [B * N, C]. Raises ArgumentError for another batch."""
    if len(shape) == 2 and shape[0] % batch == 0:
        return shape[0] // batch
    if len(shape) > 2 and batch in shape[:2]:
        return shape[1] if shape[0] == batch else shape[0]
    raise ArgumentError(
        f"model and method must run blocks on the whole batch of {batch} for tokens to be counted, and one got "
        f"{tuple(shape)}"
    )
