"""The notebooks run from top to bottom, in an empty folder; the script runs without PyTorch."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from alt_fast import load
from alt_fast.data.decode import decode_frames, index_video
from alt_fast.inference.stream import Recogniser, join
from tests.conftest import SMALL_LABELS, VideoWriter, few_blocks, hold_upright
from tests.notebook import cells
from tests.processes import start

EXAMPLES = Path(__file__).parent.parent / "examples"
LEFT_BEHIND = {"merge_tokens": set(), "train_and_classify": {"clips", "corpus.json", "new", "run", "why.html"}}
"""Files that each notebook writes."""


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(LEFT_BEHIND)


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_notebook_runs(name: str, tmp_path: Path) -> None:
    with start("tests.notebook", str(EXAMPLES / f"{name}.ipynb"), str(tmp_path)) as process:
        assert process.wait(300) == 0, process.errors
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


def test_live_actions_of_streams_whose_pictures_have_no_time(onnx_folder: Path, write_video: VideoWriter) -> None:
    raw = write_video("clip.h264", frames=30)
    command = [sys.executable, str(EXAMPLES / "live_onnx.py"), str(onnx_folder), str(raw), "0.3"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) > 2


@pytest.mark.parametrize("upright", [False, True])
def test_live_actions_need_no_torch_and_every_frame_is_encoded_once(
    onnx_folder: Path, write_video: VideoWriter, upright: bool
) -> None:
    video = write_video("clip.mp4", frames=30, width=96, height=64)  # 3 s, of which every 0.3 s is taken
    if upright:
        hold_upright(video, video)
    command = [sys.executable, "-c", LIVE, str(EXAMPLES / "live_onnx.py"), str(onnx_folder), str(video)]
    done = subprocess.run([*command, "0.3"], check=True, capture_output=True, text=True)
    *lines, counts = done.stdout.splitlines()
    assert counts == "10 9"  # ten frames, and clips of two
    times, scores, labels = zip(
        *(re.fullmatch(r" *([\d.]+) s +([\d.]+)%  (.+)", x).groups() for x in lines), strict=True
    )
    assert times == tuple(f"{0.3 * number:.2f}" for number in range(1, 10))
    with few_blocks():
        recogniser = Recogniser(load(onnx_folder), SMALL_LABELS, "both")
    frames = decode_frames(video, index_video(video), range(0, 30, 3))
    seen = [recogniser.see([recogniser.cut(frame.transpose(2, 0, 1))]) for frame in frames]
    for pair, label, score in zip(pairwise(seen), labels, scores, strict=True):
        expected = recogniser.judge(join(pair))
        assert float(score) == pytest.approx(100 * expected[0][1], abs=0.2)
        assert float(score) == pytest.approx(100 * dict(expected)[label], abs=0.2)  # the likeliest, or as likely
