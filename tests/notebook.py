"""Runs a notebook's cells from top to bottom: python -m tests.notebook FILE FOLDER"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def cells(notebook: Path) -> list[dict[str, Any]]:
    """Return its cells."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    found: list[dict[str, Any]] = content["cells"]
    return found


def main(arguments: Sequence[str]) -> int:
    """Run a file in a folder."""
    notebook, folder = map(Path, arguments)
    code = ["".join(cell["source"]) for cell in cells(notebook.absolute()) if cell["cell_type"] == "code"]
    os.chdir(folder)
    scope = {"__name__": "__main__"}
    for number, cell in enumerate(code, start=1):
        exec(compile(cell, f"cell {number}", "exec"), scope)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
