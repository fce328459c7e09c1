"""What the shipped kernels take is recorded and as compiled; times follow from it by the stated model."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alt_fast_kernels.launch import Launch
from alt_fast_kernels.predict import main
from alt_fast_kernels.prediction import record
from alt_fast_kernels.prediction.compiled import TARGETS, Code, Instruction
from alt_fast_kernels.prediction.model import Machine, Trips, executed, predict

pytestmark = pytest.mark.kernel_only


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def command(*options: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "alt_fast_kernels.predict", *options)


def test_the_record_is_of_these_sources_and_a_sample_compiles_to_it() -> None:
    found = command("--sample", "4", "--workers", "1")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "4 of " in found.stdout


def test_no_recorded_kernel_is_at_fault() -> None:
    """No spills, within shared memory, not two bytes at a time; every op on every target."""
    _, rows = record.read()
    assert [fault for row in rows.values() for fault in row.faults()] == []
    kernels = {row.kernel for row in rows.values()}
    assert {name.partition("_")[0] for name in kernels} == {"match", "merge", "attention", "align"}
    assert {(target, kernel) for target, kernel, _ in rows} == {
        (target, name) for target in TARGETS for name in kernels
    }


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_tokens_are_moved_16_bytes_at_a_time(dtype: str) -> None:
    """Wherever strides allow, which every recorded case does: heads of 40, 72, 88 and 104 channels too."""
    _, rows = record.read()
    for row in rows.values():
        reads_tokens = row.kernel.startswith(("attention", "merge", "match_metric", "match_once"))
        if reads_tokens and row.configuration.startswith(dtype) and row.target != "gfx942":
            assert row.loads.get("16", 0) > 0, row


ROW = record.Row("sm_90", "match_metric", "fp32", 64, 0, 4096, 4, 8, 300, {"other": 100}, {"16": 4}, {"16": 1})


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"spills": 8}, "spills 8"),
        ({"shared": 300_000}, "needs 300000 bytes of shared memory"),
        ({"loads": {"2": 64, "16": 4}}, "loads less than 4 bytes 64 times"),
        ({"blocks": 7}, "7 blocks per multiprocessor, 8 before"),
        ({"loop": {"other": 101}}, "101 instructions in the loop, 100 before"),
    ],
)
def test_what_is_worse_is_named(changed: dict, fault: str) -> None:
    assert list(record.regressions([ROW], {ROW.key: ROW})) == []
    worse = replace(ROW, **changed)
    assert list(record.regressions([worse], {ROW.key: ROW})) == [f"sm_90 match_metric fp32: {fault}"]


def test_the_fingerprint_is_of_code_and_not_of_words(tmp_path: Path) -> None:
    source = tmp_path / "a.py"
    source.write_text('"""Words."""\n\n\ndef f(x):  # words\n    """Words."""\n    return x + 1\n')
    code = record.code_of(source)
    source.write_text('"""Others."""\ndef f(x):\n    """Others."""\n\n    return x + 1\n')
    assert record.code_of(source) == code
    source.write_text('"""Words."""\n\n\ndef f(x):\n    """Words."""\n    return x + 2\n')
    assert record.code_of(source) != code


@pytest.mark.parametrize(
    ("name", "kind", "width"),
    [
        ("LDG.E.128", "memory", 16),
        ("LDG.E.64.CONSTANT", "memory", 8),
        ("LDG.E", "memory", 4),
        ("LDG.E.U16", "memory", 2),
        ("LDGSTS.E.BYPASS.LTC128B.128", "memory", 16),
        ("LDGSTS.E.LTC128B", "memory", 4),
        ("STG.E.U8", "memory", 1),
        ("LDS.128", "memory", None),
        ("HGMMA.64x64x16.F32.BF16", "tensor", None),
        ("HMMA.16816.F32.BF16", "tensor", None),
        ("MUFU.EX2", "special", None),
        ("FFMA", "other", None),
        ("global_load_dwordx4", "memory", 16),
        ("global_load_dword", "memory", 4),
        ("buffer_store_short", "memory", 2),
        ("global_load_ushort", "memory", 2),
        ("v_mfma_f32_32x32x8_bf16_1k", "tensor", None),
        ("v_exp_f32_e32", "special", None),
        ("v_fma_f32", "other", None),
    ],
)
def test_instructions_are_read(name: str, kind: str, width: int | None) -> None:
    instruction = Instruction(0, name, None)
    assert (instruction.kind, instruction.width) == (kind, width)


def code(length: int, *jumps: tuple[int, int], warps: int = 4, registers: int = 128) -> Code:
    """Straight-line code of `length` instructions with jumps back (from, to)."""
    targets = dict(jumps)
    instructions = tuple(Instruction(i, "FFMA", targets.get(i)) for i in range(length))
    return Code("sm_90", registers, 0, 0, warps, instructions, "")


def test_executed_instructions() -> None:
    nested = code(100, (59, 20), (39, 30), (89, 80))  # a loop of 40 around one of 10, then one of 10
    assert executed(nested, (Trips(3, (Trips(5),)), Trips(2)), "kernel") == 50 + 3 * (30 + 5 * 10) + 2 * 10
    with pytest.raises(RuntimeError, match="kernel was compiled to 2 loops where predict.TRIPS has 1"):
        executed(nested, (Trips(3),), "kernel")


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "blocks"),
    [
        (128, 4, 0, 4),
        (129, 4, 0, 3),
        (255, 4, 0, 2),
        (255, 8, 0, 1),
        (32, 4, 0, 16),
        (32, 4, 56 * 1024, 4),
        (16, 1, 0, 32),
    ],
)
def test_blocks_per_multiprocessor(registers: int, warps: int, shared: int, blocks: int) -> None:
    found = Code("sm_90", registers, 0, shared, warps, (), "").blocks_per_multiprocessor
    assert found == blocks


class Named:
    """Stands in for a kernel without loops and matrix products."""

    __name__ = "named_kernel"
    arg_names = ("x",)


def test_the_largest_limit_is_the_time() -> None:
    x = torch.empty(30_000_000, dtype=torch.int8)
    machine = Machine(bandwidth=3e12, launch=1e-6, issue=0.5, lone_warp=4, clock=1e9, multiprocessors=100)
    short = predict(Launch(Named(), 400, (x, x), {}), code(10), machine)
    assert short.limit == "memory"
    assert short.predicted == pytest.approx(10e-6 + 1e-6)  # the tensor is counted once
    one_wave = predict(Launch(Named(), 400, (x,), {}), code(50_000), machine)  # four blocks of four warps on each
    assert one_wave.limit == "issue"
    assert one_wave.predicted == pytest.approx(50_000 * 4 / 0.5 / 1e9 + 1e-6)
    lone = predict(Launch(Named(), 1, (x,), {}), code(50_000), machine)
    assert lone.predicted == pytest.approx(50_000 * 4 / 1e9 + 1e-6)


OF_BOTH = """
from alt_fast_kernels.prediction.cases import match_case
from alt_fast_kernels.prediction.model import Machine
from alt_fast_kernels.prediction.towers import Predictor
predictor = Predictor(Machine())
kernels = [predictor.op(match_case(2, 149, 12, 32, 74, every=every)).kernels[0] for every in (2, 4)]
print(*(launch.name for launch, _, time in kernels if time.predicted > 0), len({id(code) for _, code, _ in kernels}))
"""


def test_matchings_with_other_destinations_are_predicted_from_kernels_of_their_own() -> None:
    found = python("-c", OF_BOTH)
    assert found.stdout.split() == ["match_once", "match_once", "2"], found.stdout + found.stderr


def test_bad_options_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    for options, said in (
        (["--set", "speed=3"], "--set takes NAME=VALUE with NAME of bandwidth, cache_bandwidth"),
        (["--set", "bandwidth=fast"], "could not convert string to float: 'fast'"),
        (["--record", "--op", "match"], "--record is of everything"),
    ):
        with pytest.raises(SystemExit) as error:
            main(options)
        assert error.value.code == 2
        assert said in capsys.readouterr().err


def test_says_when_it_cannot_compile(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as error:
        main([])
    assert error.value.code == 2
    assert "unset TRITON_INTERPRET" in capsys.readouterr().err


def test_times_of_an_op() -> None:
    found = command("--op", "merge backward", "--set", "launch=0")
    assert found.returncode == 0, found.stderr
    assert "nothing here is measured" in found.stdout
    assert "| merge backward | B=256 N=197 r=8 C=768 fused |" in found.stdout
