"""Races: what the static verifier proved of the compiled kernels stays proven, and it finds what is planted."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from alt_fast_kernels.prediction import verify
from alt_fast_kernels.prediction.ptx import Program
from alt_fast_kernels.prediction.verify import GIVEN, PROVEN, RACE, UNDECIDED, Row
from tests.kernels.conftest import of_recorded_code

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


def program_of(*body: str) -> Program:
    lines = [line.strip() for part in body for line in part.split(";") if line.strip()]
    return Program.of(HEAD + "".join(f"\t{line}{';' * (line[-1] != ':')}\n" for line in lines) + "\tret;\n}\n")


def verdict(*body: str, programs: int = 0) -> tuple[str, frozenset[str], str]:
    """Of a block of 64 threads, or of the stores of so many programs."""
    program = program_of(*body)
    config = {
        "schema": "spverify.kernel-input/v1",
        "launch": {"grid_dim": [programs or 1, 1, 1], "block_dim": [64, 1, 1]},
        "arguments": [],
        "declarations": [{"parameter": "planted_kernel_param_0", "type": "pointer", "object": "out"}],
    }
    part = program.grid() if programs else program.block(0).with_new_barriers().stored_by_row()
    return verify._proof(part, config, 60)


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
    assert any("differ in bits 0b1 alone write one value" in text for text in given)
    assert verdict(ONE_WORD, READ, TILE)[0] == RACE


def test_a_branch_on_data_is_taken_both_ways() -> None:
    found, given, _ = verdict(ON_DATA, BARRIER, WRITE, BARRIER, READ, TILE, LABEL)
    assert found == GIVEN
    assert any("both ways" in text for text in given)
    assert verdict(WRITE, BARRIER, ON_DATA, WRITE, LABEL, READ, TILE)[0] == RACE  # of one of the two ways


IS_FIRST = "setp.eq.s32 %p2, %r1, 0"
INIT, END = "@%p2 mbarrier.init.shared::cta.b64 [%r15], 64;", "@%p2 mbarrier.inval.shared::cta.b64 [%r15];"
ARRIVE = "mbarrier.arrive.shared::cta.b64 %rd4, [%r15];"
WAIT = "$L__wait:; mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r15], 0; @!%p3 bra $L__wait;"


@pytest.mark.parametrize(("wait", "expected"), [(WAIT, PROVEN), ("", RACE)], ids=["waits", "does not wait"])
def test_a_barrier_has_a_life_in_each_turn_of_a_loop(wait: str, expected: str) -> None:
    """At one address: the verifier takes a single life of each."""
    turn = [INIT, BARRIER, WRITE, ARRIVE, wait, READ, BARRIER, END, BARRIER]
    loop = [IS_FIRST, "add.s32 %r15, %r2, 1024; mov.u32 %r16, 0; $L__turn:;", *turn]
    found = verdict(*loop, "add.s32 %r16, %r16, 1; setp.lt.s32 %p4, %r16, 2; @%p4 bra $L__turn;", TILE)
    assert found[0] == expected, found


@pytest.mark.parametrize(("ordered", "expected"), [(BARRIER, PROVEN), ("", RACE)], ids=["ordered", "at once"])
def test_other_data_in_the_bytes_of_a_barrier_wait_for_its_end(ordered: str, expected: str) -> None:
    """Triton may put some there once it is invalidated, which is moved away from them."""
    other = "setp.eq.s32 %p5, %r1, 33; @%p5 st.shared.b32 [%r15], %r10;"
    turn = [INIT, BARRIER, WRITE, ARRIVE, WAIT, READ, BARRIER, END, ordered, other, BARRIER]
    loop = [IS_FIRST, "add.s32 %r15, %r2, 1024; mov.u32 %r16, 0; $L__turn:;", *turn]
    found = verdict(*loop, "add.s32 %r16, %r16, 1; setp.lt.s32 %p4, %r16, 2; @%p4 bra $L__turn;", TILE)
    assert found[0] == expected, found


@pytest.mark.parametrize(("wait", "expected"), [(WAIT, PROVEN), ("", RACE)], ids=["waits", "does not wait"])
def test_a_barrier_outlives_another_that_is_initialised_in_every_turn(wait: str, expected: str) -> None:
    def outer(text: str) -> str:
        return text.replace("%r15", "%r17").replace("$L__wait", "$L__last")

    turn = [INIT, BARRIER, WRITE, ARRIVE, WAIT, READ, BARRIER, END, BARRIER]
    places = "add.s32 %r15, %r2, 1024; add.s32 %r17, %r2, 1032; mov.u32 %r16, 0;"
    loop = [*turn, "add.s32 %r16, %r16, 1; setp.lt.s32 %p4, %r16, 2; @%p4 bra $L__turn;"]
    last = [WRITE, outer(ARRIVE), outer(wait), READ, BARRIER, outer(END), TILE]
    found = verdict(IS_FIRST, places, outer(INIT), "$L__turn:;", *loop, *last)
    assert found[0] == expected, found


STORE_MATRIX = "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r13], {%r10};"


@pytest.mark.parametrize(("rows", "expected"), [(3, GIVEN), (7, PROVEN)], ids=["four rows twice", "eight rows"])
def test_lanes_that_store_one_row_of_a_matrix_are_named(rows: int, expected: str) -> None:
    address = f"and.b32 %r12, %r1, {rows}; shl.b32 %r12, %r12, 4; and.b32 %r14, %r1, 32; shl.b32 %r14, %r14, 2;"
    found, given, reason = verdict(address, "add.s32 %r12, %r12, %r14; add.s32 %r13, %r2, %r12;", STORE_MATRIX)
    assert found == expected, reason
    assert any("differ in bits 0b100 alone" in text for text in given) == (expected == GIVEN)
    further = STORE_MATRIX.replace("%r13]", "%r13+1024]")
    lanes = (address, "add.s32 %r12, %r12, %r14; add.s32 %r13, %r2, %r12;")
    assert verdict(*lanes, further, "ld.shared.b32 %r11, [global_smem+1024];", TILE)[0] == RACE
    assert verdict(*lanes, further, "ld.shared.b32 %r11, [global_smem];", TILE)[0] == expected


def test_descriptors_keep_their_bits_and_lose_their_sign() -> None:
    product = "@%p1 tcgen05.mma.cta_group::1.kind::f16 [ %r1 + 0 ], %rd5, %rd6, %r17, %p2;"
    body = ["mov.b32 %r17, {}; or.b64 %rd5, %rd4, -{}; add.s64 %rd6, %rd4, -{}; add.s64 %rd7, %rd4, -8;", product]
    ends = 1 << 63 | 0x120_0004_0000_0000, 1 << 62 | 1 << 63 | 5
    written = "".join(body).format(68158608, *(2**64 - end for end in ends))
    expected = "".join(body).format(68158608 - (1 << 7) - (1 << 10), *ends).replace("-", "", 2)
    found = program_of(written).respelt().lines
    assert found == program_of(expected.replace("add.s64 %rd6", "add.u64 %rd6")).lines
    assert program_of(expected).respelt().lines == program_of(expected).lines


def test_kernels_that_differ_in_which_16_bits_they_take_are_verified_together() -> None:
    keys: list[verify.Key] = [
        ("sm_80", "planted", chosen) for chosen in ("bf16 M=1", "bf16 M=2", "fp16 M=1", "fp32 M=1")
    ]
    assert verify._varied(keys) == [[keys[0], keys[2]], [keys[3]], [keys[1]]]


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


@of_recorded_code
def test_a_sample_is_no_worse_than_recorded_and_no_row_is_stale() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(verify.__file__).parents[2]), *sys.path])
    command = [sys.executable, "-m", "alt_fast_kernels.prediction.verify", "--sample", "2"]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    print(found.stdout)
    assert found.returncode == 0, found.stdout + found.stderr
