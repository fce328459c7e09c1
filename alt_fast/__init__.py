"""alt-fast: token merging whose FLOP saving reaches the clock, and ALT, "align before adapt", for video recognition."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import alt_fast._torchvision  # noqa: F401  (first of all: see its docstring)

if TYPE_CHECKING:
    from alt_fast import visualize
    from alt_fast.checkpoint import TrainedModel, load
    from alt_fast.corpus import Corpus, Entity
    from alt_fast.model import ALT, ModelConfig, create_model
    from alt_fast.patch import MergeTrace, apply_patch, merge_trace, remove_patch
    from alt_fast.tome import ToMeAttention

__version__ = "0.1.0"

_LAZY = {
    "ALT": "alt_fast.model",
    "Corpus": "alt_fast.corpus",
    "Entity": "alt_fast.corpus",
    "MergeTrace": "alt_fast.patch",
    "ModelConfig": "alt_fast.model",
    "ToMeAttention": "alt_fast.tome",
    "TrainedModel": "alt_fast.checkpoint",
    "apply_patch": "alt_fast.patch",
    "create_model": "alt_fast.model",
    "load": "alt_fast.checkpoint",
    "merge_trace": "alt_fast.patch",
    "remove_patch": "alt_fast.patch",
}

__all__ = [
    "ALT",
    "Corpus",
    "Entity",
    "MergeTrace",
    "ModelConfig",
    "ToMeAttention",
    "TrainedModel",
    "apply_patch",
    "create_model",
    "load",
    "merge_trace",
    "remove_patch",
    "visualize",
]


def __getattr__(name: str) -> Any:
    """Public names load on first use."""
    if name == "visualize":
        return import_module("alt_fast.visualize")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'alt_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "visualize"})
