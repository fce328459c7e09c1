"""Methods that leave a vision transformer fewer tokens, each from its paper, on any host that `apply_patch` takes.

    METHODS["pitome"].apply(model, 8)                   # eight tokens fewer in every layer, patched in place
    find_method("my_module:my_function").apply(model, 8)

All stand between attention and MLP, and but for ToMe's each is a few lines in a file of its own. Those that average
tokens let attention count patches, as ToMe does; those that drop them, EViT and `drop`, do not. Where a host reads
patches, every one has the features of the token that it is in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from alt_fast.errors import ArgumentError
from alt_fast.methods.drop import drop_step
from alt_fast.methods.evit import evit_step
from alt_fast.methods.mutual import apply_mutual_pairs
from alt_fast.methods.pitome import pitome_step
from alt_fast.methods.plans import tokens_left
from alt_fast.methods.pool import apply_pool, pooled_tokens
from alt_fast.methods.random_pairs import random_step
from alt_fast.methods.threshold import apply_threshold
from alt_fast.methods.tofu import tofu_step
from alt_fast.tome.patch import apply_patch

__all__ = ["METHODS", "Method", "find_method"]

PER_LAYER = "tokens removed per layer, at most half of those there are"


@dataclass(frozen=True)
class Method:
    """A way to leave fewer tokens.

    name: in `METHODS`, or module:function. apply: called as apply(model, r), patches the model in place; returns it,
    another one to use in its place, whose modules have the same names, or None. source: the paper, or "control". what,
    r: in a line each, what it does, and what its r means. values: of r, for a sweep on a transformer of 197 to 257
    tokens. tokens: from num_tokens, protected (leading tokens, which stay), num_layers and r, how many tokens enter the
    MLP of each layer; None where that depends on the images.
    """

    name: str
    apply: Callable[[nn.Module, Any], object]
    source: str
    what: str
    r: str = PER_LAYER
    values: tuple[float, ...] = (4, 8, 12, 16)
    tokens: Callable[[int, int, int, Any], list[int]] | None = tokens_left


METHODS = {
    method.name: method
    for method in (
        Method(
            "tome",
            apply_patch,
            "ToMe, arXiv 2210.09461",
            "merges the most similar pairs of a bipartite matching of keys",
        ),
        Method(
            "random",
            partial(apply_patch, step=random_step),
            "control",
            "merges pairs that nobody looked at",
        ),
        Method(
            "tofu",
            partial(apply_patch, step=tofu_step),
            "ToFu, arXiv 2312.01026",
            "drops ToMe's sources in the first half of the layers, then merges them and keeps the norm",
        ),
        Method(
            "pitome",
            partial(apply_patch, step=pitome_step),
            "PiToMe, arXiv 2405.16148",
            "merges among tokens with many alike, protects the others",
        ),
        Method(
            "evit",
            partial(apply_patch, step=evit_step, prop_attn=False),
            "EViT, arXiv 2202.07800",
            "fuses what the class token attends to least into one token",
        ),
        Method(
            "mpm",
            apply_mutual_pairs,
            "MPM, arXiv 2604.05718",
            "merges all tokens that are each other's nearest",
            r="layers that merge, evenly spread",
            values=(1, 2, 3, 4),
            tokens=None,
        ),
        Method(
            "threshold",
            apply_threshold,
            "DyMU, arXiv 2504.17040, with one threshold",
            "merges all pairs of ToMe's matching that are alike enough",
            r="the cosine above which a pair merges, in every layer",
            values=(0.998, 0.995, 0.99, 0.98),
            tokens=None,
        ),
        Method(
            "drop",
            partial(apply_patch, step=drop_step, prop_attn=False),
            "control",
            "drops tokens, evenly spread",
        ),
        Method(
            "pool",
            apply_pool,
            "control",
            "averages every 2 x 2 patches, once",
            r="what ToMe removes per layer: pooling stands where the sum of tokens is nearest to ToMe's",
            tokens=pooled_tokens,
        ),
    )
}
"""By name: ToMe, what followed it, and the controls that any of them has to beat."""


def find_method(name: str) -> Method:
    """The method of a name in `METHODS`, or the one that "module:function" makes.

    The function is called as `Method.apply`, which it is. What it claims of its tokens, if anything, is its attribute
    `tokens`: a function like `Method.tokens`. Raises ArgumentError for an unknown name, a module that cannot be
    imported, and a function that is not there or cannot be called.
    """
    if name in METHODS:
        return METHODS[name]
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ArgumentError(f"method must be one of {', '.join(METHODS)}, or module:function, got {name!r}")
    try:
        module = import_module(module_name)
    except Exception as error:  # the module's own code may raise anything
        raise ArgumentError(f"method {name}: {module_name} cannot be imported: {error}") from error
    function = getattr(module, attribute, None)
    if function is None:
        raise ArgumentError(f"method {name}: {module_name} has no {attribute}")
    if not callable(function):
        raise ArgumentError(f"method {name} must be a function of a model and r, got {type(function).__name__}")
    what = (function.__doc__ or "").strip().partition("\n")[0] or "says nothing of itself"
    return Method(name, function, name, what, "its own", tokens=getattr(function, "tokens", None))
