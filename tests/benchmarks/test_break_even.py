"""The roofline: limits that must hold whatever the device, and the command."""

import json
from pathlib import Path

import pytest

from benchmarks.break_even import Ceilings, main, predict, read_ceilings, speedup
from benchmarks.closed_form import VITS, vit_macs

BASE = VITS["vit_base_patch16_224"]


def test_without_memory_or_launches_the_speedup_is_the_flop_ratio() -> None:
    """But for the patch embedding, which both pay."""
    patches = 196 * 768 * 768
    ratio = (vit_macs(BASE, 0) - patches) / (vit_macs(BASE, 8) - patches)
    assert speedup(BASE, 8, 64, Ceilings(1e12, 1e30)) == pytest.approx(ratio)


def test_without_compute_only_bytes_count() -> None:
    device = Ceilings(1e30, 1e9)
    assert predict(BASE, 8, 64, device) == pytest.approx(2 * predict(BASE, 8, 64, Ceilings(1e30, 2e9)))
    assert speedup(BASE, 8, 1, device) < speedup(BASE, 8, 64, device)  # weights are read whatever the batch


def test_launches_are_what_merging_costs_at_small_batch() -> None:
    slow, fast = Ceilings(3e14, 2.5e12, launch=5e-6), Ceilings(3e14, 2.5e12)
    assert speedup(BASE, 8, 1, slow) < 1 < speedup(BASE, 8, 1, fast)
    assert speedup(BASE, 8, 256, slow) > 1.2
    assert speedup(BASE, 0, 8, slow) == 1


def test_ceilings_come_from_a_result_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, case = tmp_path / "results.jsonl", "ceilings, float32"
    rows = [
        {"provenance": {}},
        {"case": case, "contestant": "copy", "bytes": 10**9, "seconds": 0.5},
        {"case": case, "contestant": "matmul", "macs": 10**9, "seconds": 0.25},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_ceilings(path) == Ceilings(4e9, 2e9, itemsize=4)
    assert main(["--results", str(path)]) == 0
    assert "vit_base_patch16, r = 8" in capsys.readouterr().out
    assert main(["--results", str(path), "--launch-us", "50"]) == 0
    assert "4 bytes per number, 50 us per launch" in capsys.readouterr().out
    for options, message in (
        (["--tflops", "1", "--gbps", "1"], "give --results, or both"),
        (["--itemsize", "2"], "--itemsize has no effect on --results"),
        (["--launch-us", "-1"], "--launch-us >= 0"),
    ):
        with pytest.raises(SystemExit):
            main(["--results", str(path), *options])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--tflops", "600", "--gbps", "-5"])
    assert "--tflops and --gbps must be > 0" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--tflops", "1"]])
def test_half_a_device_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert "both --tflops and --gbps" in capsys.readouterr().err


def test_results_without_ceilings_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"provenance": {}}\n')
    with pytest.raises(SystemExit):
        main(["--results", str(path)])
    assert "has no measured ceilings" in capsys.readouterr().err
