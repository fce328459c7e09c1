"""alt-fast: token merging whose FLOP saving reaches the clock, and ALT, "align before adapt", for video recognition.

The public names are listed once, in `__init__.pyi`, and load on first use: importing the package imports no PyTorch.
"""

import ast
import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def _public_names() -> dict[str, str]:
    """Return the module of every public name, from the stub that type checkers read."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_PUBLIC = _public_names()
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'alt_fast' has no attribute {name!r}")
    if _PUBLIC[name] == __name__:
        return import_module(f"{__name__}.{name}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing; mends PyTorch for torchvision just before that is first imported (see `_torchvision`)."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import_module("alt_fast._torchvision")


if "torchvision" not in sys.modules:
    sys.meta_path.insert(0, _BeforeTorchvision())
