"""Threads that compute have cores of their own, and what was compiled once is taken from the disk."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config

from alt_fast import classify, evaluate, extract, live
from alt_fast.data.config import AugmentConfig
from alt_fast.inference import speed
from alt_fast.inference.speed import busy_decoders, computing, computing_beside
from alt_fast.inference.trained import TrainedModel, save_model
from tests.conftest import SMALL_LABELS, few_blocks, small_alt


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What PyTorch is told to take, the newest last, on a machine of 16 cores where nobody has said a number."""
    told = [16]
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: told[-1])
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    return told


def test_threads_leave_cores_to_those_that_decode(threads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    for busy, left in ((0, 16), (3, 13), (16, 1), (40, 1)):
        with computing_beside(busy):
            assert threads[-1] == left
        assert threads[-1] == 16
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    with computing_beside(3):
        assert threads[-1] == 16


def test_processes_that_decode_are_busy_beside_a_small_model(
    threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_alt()
    assert [busy_decoders(model, workers) for workers in (0, 2, 100)] == [0, 2, 16]
    with computing(model, 2):
        assert threads[-1] == 14
    weights = sum(parameter.numel() for parameter in model.encoder.visual.transformer.parameters())
    monkeypatch.setattr(speed, "MACS", weights * 37 * 2 / 0.15)  # so that a clip takes three times as long to compute
    assert [busy_decoders(model, workers) for workers in (0, 2, 100)] == [0, 2, 4]
    monkeypatch.setattr(speed, "MACS", weights * 37 * 2 / 10.0)
    assert busy_decoders(model, 100) == 0


@pytest.mark.parametrize("command", [classify, evaluate, extract, live])
def test_commands_choose_threads(command: Any, threads: list[int], trained_run: Path, tmp_path: Path) -> None:
    """And put back what they found."""
    data = trained_run.parent / "data"
    video, listed = str(data / "test" / "00003.webm"), str(data / "unseen.txt")
    lists = ["--list", listed, "--classes", str(data / "unseen_classes.csv")]
    arguments = {
        classify: [listed, "--workers", "1", "--out", str(tmp_path / "a.csv")],
        evaluate: [*lists, "--workers", "1"],
        extract: [*lists, "--workers", "1", "--out", str(tmp_path / "vectors")],
        live: [video, "--window", "300ms"],
    }
    assert command.main([*arguments[command], "--checkpoint", str(trained_run)]) == 0
    assert threads[:2] == [16, 15]
    assert threads[-1] == 16


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A model of one block."""
    model = small_alt(r=0, query="frame")
    save_model(tmp_path / "small.safetensors", TrainedModel(model, SMALL_LABELS, ["{}"], AugmentConfig()))
    return str(tmp_path / "small.safetensors")


def test_what_was_compiled_once_is_on_the_disk(
    small: str, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The image tower alone, and all kernels in one file: to warm up, and for two videos, the same code.

    Of the third, a batch of its own, nothing is compiled.
    """
    quick: dict[str, Any] = {"cpp_wrapper": True, "cpp_wrapper_build_separate": True}
    quick |= {"aot_inductor.debug_compile": True, "cpp_cache_precompile_headers": False}
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    videos = [str(trained_run.parent / "data" / "test" / f"{number:05}.webm") for number in range(3)]
    command = [*videos, "--checkpoint", small, "--head", "clip", "--json", "--workers", "0", "--batch-size", "2"]
    answers = []
    for options, expected in (([], None), (["--compile"], "miss"), (["--compile"], "hit")):
        torch.compiler.reset()
        counters.clear()
        with few_blocks(), inductor_config.patch(quick):
            assert classify.main([*command, *options]) == 0
        found = json.loads(capsys.readouterr().out)
        answers.append([label["probability"] for video in found for label in video["labels"]])
        caught = {name: count for name, count in counters["inductor"].items() if name.startswith("fxgraph_cache")}
        assert caught == ({} if expected is None else {f"fxgraph_cache_{expected}": 1})
        assert counters["stats"]["unique_graphs"] == len(options)
    eager, *compiled = answers
    assert compiled[0] == compiled[1] == pytest.approx(eager, rel=1e-4)


def test_without_a_compiler_it_says_so(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for command, named in ((classify, ["a.mp4"]), (live, ["a.mp4"]), (extract, ["--list", "a", "--out", "b"])):
        with few_blocks():
            assert command.main([*named, "--checkpoint", small, "--device", "cpu", "--compile"]) == 1
        assert "--compile on a CPU needs a C++ compiler" in capsys.readouterr().err
