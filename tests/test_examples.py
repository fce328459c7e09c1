"""The notebooks run from top to bottom, in an empty folder; the script runs without PyTorch."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SMALL_LABELS, VideoWriter

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


LIVE = """
import collections, runpy, sys
import onnxruntime

class Counting(onnxruntime.InferenceSession):
    def run(self, outputs, inputs):
        runs[len(inputs)] += 1
        return super().run(outputs, inputs)

runs = collections.Counter()
onnxruntime.InferenceSession = Counting
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert "torch" not in sys.modules and "alt_fast" not in sys.modules
print(runs[1], runs[3])
"""
"""Counts how often the encoder, of one input, and the decoder, of three, ran."""


def test_live_actions_need_no_torch_and_every_frame_is_encoded_once(
    onnx_folder: Path, write_video: VideoWriter
) -> None:
    video = write_video("clip.mp4", frames=30, width=96, height=64)  # 3 s, of which every 0.3 s is taken
    command = [sys.executable, "-c", LIVE, str(EXAMPLES / "live_onnx.py"), str(onnx_folder), str(video)]
    done = subprocess.run([*command, "--every", "0.3"], check=True, capture_output=True, text=True)
    *lines, counts = done.stdout.splitlines()
    assert counts == "10 9"  # ten frames, and clips of two
    times, scores, labels = zip(
        *(re.fullmatch(r" *([\d.]+) s +([\d.]+)%  (.+)", x).groups() for x in lines), strict=True
    )
    assert times == tuple(f"{0.3 * number:.2f}" for number in range(1, 10))
    assert set(labels) <= set(SMALL_LABELS)
    assert all(100 / len(SMALL_LABELS) < float(score) <= 100 for score in scores)
