"""Races: what the static verifier proved of the compiled kernels stays proven, and it finds what is planted."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from alt_fast_kernels.prediction import verify
from alt_fast_kernels.prediction.verify import GIVEN, PROVEN, RACE, UNDECIDED, Program, Row

pytestmark = [pytest.mark.kernel_only, pytest.mark.verify]

HEAD = """
.version 8.7
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry planted_kernel(
	.param .u64 .ptr .global .align 16 planted_kernel_param_0
)
.reqntid 64
{
	.reg .pred %p<9>;
	.reg .b32 %r<19>;
	.reg .b64 %rd<9>;
	ld.param.b64 %rd1, [planted_kernel_param_0];
	mov.u32 %r1, %tid.x;
	mov.b32 %r2, global_smem;
	shl.b32 %r3, %r1, 2;
	add.s32 %r4, %r2, %r3;
	xor.b32 %r5, %r3, 128;
	add.s32 %r6, %r2, %r5;
	mov.u32 %r7, %ctaid.x;
	shl.b32 %r8, %r7, 8;
	add.s32 %r9, %r8, %r3;
	mul.lo.s32 %r10, %r1, %r1;
"""
BARRIER = "bar.sync 0;"
WRITE, READ = "st.shared.b32 [%r4], %r10;", "ld.shared.b32 %r11, [%r6];"
TILE = "cvt.s64.s32 %rd2, %r9; add.s64 %rd3, %rd1, %rd2; st.global.b32 [%rd3], %r11;"
SAME_TILE = TILE.replace("%r9", "%r3")
ONE_WORD = "and.b32 %r12, %r3, 252; and.b32 %r12, %r12, 248; add.s32 %r13, %r2, %r12; st.shared.b32 [%r13], %r10;"
ON_DATA = "ld.shared.b32 %r14, [global_smem+512]; setp.gt.f32 %p1, %r14, 0f00000000; @%p1 bra $L__skip;"
LABEL = "$L__skip:"


def verdict(*body: str, programs: int = 0) -> tuple[str, frozenset[str], str]:
    """Of a block of 64 threads, or of the stores of so many programs."""
    lines = [
        line.strip() + (";" if line.strip()[-1] != ":" else "") for part in body for line in part.split(";") if line
    ]
    program = Program.of(HEAD + "".join(f"\t{line}\n" for line in lines) + "\tret;\n}\n")
    config = {
        "schema": "spverify.kernel-input/v1",
        "launch": {"grid_dim": [programs or 1, 1, 1], "block_dim": [64, 1, 1]},
        "arguments": [],
        "declarations": [{"parameter": "planted_kernel_param_0", "type": "pointer", "object": "out"}],
    }
    return verify._proof(program.grid() if programs else program.block(0), config, 60)


def test_a_barrier_between_write_and_read_is_needed() -> None:
    assert verdict(WRITE, BARRIER, READ, TILE)[0] == PROVEN
    found, _, reason = verdict(WRITE, READ, TILE)
    assert found == RACE
    assert "write" in reason
    assert "read" in reason
    assert "shared" in reason


def test_programs_store_to_tiles_of_their_own() -> None:
    assert verdict(WRITE, BARRIER, READ, TILE, programs=4)[0] == PROVEN
    assert verdict(WRITE, BARRIER, READ, SAME_TILE, programs=4)[0] == RACE


def test_lanes_that_write_one_word_are_named_and_not_called_proven() -> None:
    found, given, _ = verdict(ONE_WORD, BARRIER, READ, TILE)
    assert found == GIVEN
    assert any("one value" in text and "0b1)" in text for text in given)
    assert verdict(ONE_WORD, READ, TILE)[0] == RACE


def test_a_branch_on_data_is_taken_both_ways() -> None:
    found, given, _ = verdict(ON_DATA, BARRIER, WRITE, BARRIER, READ, TILE, LABEL)
    assert found == GIVEN
    assert any("both ways" in text for text in given)
    assert verdict(WRITE, BARRIER, ON_DATA, WRITE, LABEL, READ, TILE)[0] == RACE  # of one of the two ways


def row(grid: str, block: str) -> Row:
    return Row("sm_80", "planted", "bf16", grid, block, (), "why", 1.0, "of the code")


@pytest.mark.parametrize(
    ("now", "worse"),
    [
        (row(PROVEN, GIVEN), 0), (row(PROVEN, PROVEN), 0), (row(PROVEN, UNDECIDED), 1), (row(RACE, RACE), 2),
        (row(GIVEN, ""), 1),
    ],
)  # fmt: skip
def test_what_is_worse_than_recorded_is_named(now: Row, worse: int) -> None:
    known = row(PROVEN, GIVEN)
    assert len(verify.regressions([now], {known.key: known})) == worse
    assert len(verify.regressions([now], {})) == (now.verdict == RACE)


def test_no_race_is_recorded_and_undecided_kernels_have_a_reason() -> None:
    rows = verify.read().values()
    assert {row.target for row in rows} <= set(verify.ARCHS)
    assert [row for row in rows if row.verdict == RACE] == []
    assert [row for row in rows if row.verdict == UNDECIDED and not row.reason] == []
    assert [row for row in rows if row.verdict == GIVEN and not row.given] == []


def test_rows_of_other_code_are_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """And those of what is no longer launched."""
    known, gone = row(PROVEN, PROVEN), replace(row(PROVEN, PROVEN), kernel="gone")
    recorded = {one.key: one for one in (known, gone)}
    monkeypatch.setattr(verify, "_launches", lambda arch: {known.key: "launch"})
    monkeypatch.setattr(verify, "made_of", lambda launch: "of the code")
    assert verify.stale(recorded) == [gone.key]
    monkeypatch.setattr(verify, "made_of", lambda launch: "of other code")
    assert verify.stale(recorded) == [known.key, gone.key]


def test_a_sample_is_no_worse_than_recorded_and_no_row_is_stale() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(verify.__file__).parents[2]), *sys.path])
    command = [sys.executable, "-m", "alt_fast_kernels.prediction.verify", "--sample", "2"]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    print(found.stdout)
    assert found.returncode == 0, found.stdout + found.stderr
