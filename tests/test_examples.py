"""The notebooks run from top to bottom, in an empty folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
LEFT_BEHIND = {"merge_tokens": set(), "train_and_classify": {"clips", "corpus.json", "run", "why.html"}}
"""Files that each notebook writes."""

RUN = """
import json, sys

cells = json.load(sys.stdin)
scope = {"__name__": "__main__"}
for number, cell in enumerate(cells, start=1):
    exec(compile(cell, f"cell {number}", "exec"), scope)
"""


def cells(notebook: Path) -> list[dict[str, Any]]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    found: list[dict[str, Any]] = content["cells"]
    return found


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(LEFT_BEHIND)


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_notebook_runs(name: str, tmp_path: Path) -> None:
    notebook = EXAMPLES / f"{name}.ipynb"
    code = ["".join(cell["source"]) for cell in cells(notebook) if cell["cell_type"] == "code"]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}  # more are slow where others compute
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(code),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == LEFT_BEHIND[name]


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_notebook_is_kept_without_outputs(name: str) -> None:
    for cell in cells(EXAMPLES / f"{name}.ipynb"):
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
