"""alt-fast: token merging whose FLOP saving reaches the clock, and ALT, "align before adapt", for video recognition.

The public names are listed once, in `__init__.pyi`, and load on first use: importing the package imports no PyTorch.
"""

import ast
import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
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


class _MendsTorchvision(MetaPathFinder):
    """Imports torchvision once more where that failed for want of its operators (see `_torchvision`)."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((spec for finder in others if (spec := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_mend(module: ModuleType) -> None:
                try:
                    execute(module)
                except RuntimeError:
                    if not import_module("alt_fast._torchvision").declare_missing_operators():
                        raise
                    execute(module)

            spec.loader.exec_module = execute_and_mend  # type: ignore[method-assign]
        return spec


if "torchvision" not in sys.modules:
    sys.meta_path.insert(0, _MendsTorchvision())
