"""The public code of methods, from a checkout, called as ours are. Nothing of it is kept here.

| method | repository |
|---|---|
| tome | github.com/facebookresearch/ToMe |
| pitome, tofu | github.com/hchautran/PiToMe |

They take timm's VisionTransformer, of Blocks with Attention. Their blocks know neither LayerScale nor norms of queries
and keys, and would leave them out.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from alt_fast.errors import ArgumentError
from alt_fast_kernels import max_r

Patch = Callable[[nn.Module, Any], nn.Module]


def public_method(name: str, checkout: Path) -> Patch:
    """Return patch(model, r), which patches timm's VisionTransformer in place by the code in `checkout`.

    Raises ArgumentError for a method without public code that is known here, and for a folder that does not hold it;
    the patch does for another model.
    """
    if name not in PUBLIC:
        raise ArgumentError(f"public code is known of {', '.join(PUBLIC)}, got {name}")
    try:
        patch = PUBLIC[name](checkout)
    except (ImportError, AttributeError, OSError) as error:
        raise ArgumentError(f"{checkout} does not hold the public code of {name}: {error}") from error
    return partial(_patched_timms, patch, name)


def _patched_timms(patch: Patch, name: str, model: nn.Module, r: Any) -> nn.Module:
    wanted = f"the public code of {name} takes timm's VisionTransformer, of Blocks with Attention"
    if isinstance(r, float) or (name != "tome" and not isinstance(r, int)):
        raise ArgumentError(f"the public code of {name} removes a number of tokens, got r = {r}")
    if not isinstance(model, VisionTransformer):
        raise ArgumentError(f"{wanted}, got {type(model).__module__}.{type(model).__name__}")
    blocks: list[Any] = list(model.blocks)
    for block in blocks:
        if not isinstance(block, Block) or not isinstance(block.attn, Attention):
            attention = type(getattr(block, "attn", None)).__name__
            raise ArgumentError(f"{wanted}, got a block {type(block).__name__} with {attention}")
        parts = {
            "LayerScale": (block.ls1, block.ls2),
            "norms of queries and keys": (block.attn.q_norm, block.attn.k_norm),
        }
        for left_out, modules in parts.items():
            if not all(isinstance(module, nn.Identity) for module in modules):
                raise ArgumentError(f"the public code of {name} leaves out {left_out}, which this model has")
    return patch(model, r)


def _tome(checkout: Path) -> Patch:
    with _importing(checkout):
        adapter = import_module("tome.patch").timm

    def patch(model: nn.Module, r: Any) -> nn.Module:
        adapter(model)
        model.r = r
        return model

    return patch


def _pitome(checkout: Path) -> Patch:
    module = _without_packages(checkout, "algo.pitome.patch.timm")

    def prepare(block: Any, layer: int, num_layers: int) -> None:
        block.init_margin(0.75 * (1 - layer / num_layers))

    def info(num_layers: int) -> dict[str, Any]:
        first = -(-num_layers // 2)
        return {"use_bsm_pitome": [True] * first + [False] * (num_layers - first)}

    return _by_ratio(module.PiToMeBlock, module.PiToMeAttention, prepare, info)


def _tofu(checkout: Path) -> Patch:
    module = _without_packages(checkout, "algo.tofu.patch.timm")

    def prepare(block: Any, layer: int, num_layers: int) -> None:
        block.init_strategy("tofu" if layer > num_layers // 2 else "prune")

    return _by_ratio(module.ToFuBlock, module.ToFuAttention, prepare, lambda num_layers: {})


def _by_ratio(
    block_class: type,
    attention_class: type,
    prepare: Callable[[Any, int, int], None],
    info: Callable[[int], dict[str, Any]],
) -> Patch:
    """PiToMe's repository keeps a share of the tokens, popped from a list by every block: the one that removes r."""

    def patch(model: Any, r: Any) -> nn.Module:
        prefix, num_layers = model.num_prefix_tokens, len(model.blocks)
        shared: dict[str, Any] = {"trace_source": False, "prop_attn": False, "class_token": bool(prefix)}
        for layer, block in enumerate(model.blocks):
            block.__class__ = block_class
            block.attn.__class__ = attention_class
            block._info = block.attn._info = shared
            prepare(block, layer, num_layers)

        def begin(module: Any, args: tuple[Tensor, ...]) -> None:
            left = args[0].shape[1]
            ratios = []
            for _ in range(num_layers):
                removed = min(r, max_r(left, prefix))
                ratios.append(1.0 if removed == 0 else 1 - (removed + 0.5) / (left - prefix))
                left -= removed
            module._info.update(info(num_layers), ratio=ratios, size=None, source=None)

        model.blocks[0].register_forward_pre_hook(begin)
        return model

    return patch


@contextmanager
def _importing(checkout: Path) -> Iterator[None]:
    sys.path.insert(0, str(checkout))
    try:
        yield
    finally:
        sys.path.remove(str(checkout))


def _without_packages(checkout: Path, name: str) -> Any:
    """Import a module without running its packages' own code, which asks for libraries that it does not need."""
    parts = name.split(".")[:-1]
    packages = {".".join(parts[: i + 1]): checkout.joinpath(*parts[: i + 1]) for i in range(len(parts))}
    for package, folder in packages.items():
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = [str(folder)]
    return import_module(name)


PUBLIC: dict[str, Callable[[Path], Patch]] = {"tome": _tome, "pitome": _pitome, "tofu": _tofu}
"""Who has public code that runs on timm's models of today."""
