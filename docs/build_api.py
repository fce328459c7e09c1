"""Build the API reference from the docstrings, as pages that need no network: python docs/build_api.py FOLDER"""

import importlib
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pdoc
from jinja2 import pass_context
from pdoc.render_helpers import to_markdown_with_context

MODULES = (
    "alt_fast",
    "alt_fast.errors",
    "alt_fast.compat.tome",
    "alt_fast.data.config",
    "alt_fast.model.config",
    "alt_fast.training.config",
    "alt_fast.inference.predict",
    "alt_fast.inference.scoring",
    "alt_fast.tome.schedule",
    "alt_fast_kernels",
    "alt_fast_kernels.cost",
    "alt_fast_kernels.counting",
    "alt_fast_kernels.launch",
    "alt_fast_kernels.predict",
)
"""The two packages, and the modules of what their public names take, return and raise."""

_EXPLAINED = re.compile(r"(\n)?(^|(?<=\. ))([a-z_]\w*(?:, [a-z_]\w*)*): ", re.MULTILINE)


def emphasize(text: str) -> str:
    """Make bold what a docstring explains, as "r" in "r: tokens to remove"; at a line's start, in a paragraph anew."""
    return _EXPLAINED.sub(lambda found: ("\n\n" if found[1] else "") + f"**{found[3]}**: ", text)


@pass_context
def _to_markdown(context: Any, docstring: str) -> str:
    return emphasize(to_markdown_with_context(context, docstring))


def build(folder: Path) -> list[str]:
    """Write the pages; returns what pdoc finds wrong with them."""
    for name in MODULES:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            vars(module)[public] = getattr(module, public)  # pdoc looks for what is loaded already
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.render.env.filters["to_markdown"] = _to_markdown
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.pdoc(*MODULES, output_directory=folder)
    return [str(warning.message) for warning in caught]


if __name__ == "__main__":
    wrong = build(Path(sys.argv[1]))
    sys.exit("\n".join(wrong) or None)
