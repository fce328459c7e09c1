"""What the shipped kernels take is recorded and as compiled; times follow from it by the stated model."""

import importlib
import itertools
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alt_fast_kernels import Rotary, proportional_attention_qkvpacked, use_backend
from alt_fast_kernels import predict as predict_command
from alt_fast_kernels.cost import Cost
from alt_fast_kernels.launch import Launch, recording
from alt_fast_kernels.predict import main, print_blocks, print_towers
from alt_fast_kernels.prediction import cases, host, record
from alt_fast_kernels.prediction.around import Around, TorchCall
from alt_fast_kernels.prediction.compiled import TARGETS, Code, Instruction, made_of
from alt_fast_kernels.prediction.measured import measured
from alt_fast_kernels.prediction.model import CACHE_BYTES, TRIPS, Machine, Time, Trips, executed, predict, predict_torch
from alt_fast_kernels.prediction.towers import B16, L14, Prediction, Predictor, Tower
from tests.kernels.conftest import of_recorded_code

pytestmark = pytest.mark.kernel_only


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def command(*options: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "alt_fast_kernels.predict", *options)


OTHER = """
import sys
from dataclasses import replace
from triton.backends.compiler import GPUTarget
from alt_fast_kernels.prediction.compiled import TARGETS, bind, targeting
from alt_fast_kernels.prediction.record import launches
arch, backend, name, lanes = sys.argv[1:]
TARGETS[arch] = replace(TARGETS[arch], gpu=GPUTarget(backend, int(name) if name.isdecimal() else name, int(lanes)))
first = {launch.kernel: launch for launch in reversed(launches(arch).values())}
with targeting(arch):
    print(len(first), *(bind(launch).metadata.shared for launch in first.values()))
"""


@pytest.mark.parametrize(
    "others", [("gfx942", "hip", "gfx1100", "32"), ("gfx942", "hip", "gfx90a", "64"), ("sm_80", "cuda", "120", "32")]
)
def test_kernels_compile_for_gpus_without_rows_of_their_own(others: tuple[str, ...]) -> None:
    """One of each kernel, and fits."""
    found = python("-c", OTHER, *others)
    assert found.returncode == 0, found.stderr
    count, *shared = map(int, found.stdout.split())
    assert len(shared) == count > 10
    assert max(shared) <= (64 if others[1] == "hip" else 99) * 1024


@of_recorded_code
def test_the_record_is_of_these_sources_and_a_sample_compiles_to_it() -> None:
    found = command("--sample", "4", "--workers", "1")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "4 of " in found.stdout


@pytest.mark.parametrize(
    ("count", "narrow", "trips"),
    [
        *((197, 16, (3, 0, 1)), (96, 16, (1, 0, 2)), (97, 16, (1, 1, 0)), (128, 16, (2, 0, 0)), (5, 16, (0, 0, 1))),
        *((197, 0, (3, 1)), (128, 0, (2, 0))),
    ],
)
def test_a_short_tail_is_streamed_in_narrow_tiles(count: int, narrow: int, trips: tuple[int, ...]) -> None:
    arguments = {"HAS_SIZE": False, "num_k": count, "num_q": count, "BLOCK_N": 64, "NARROW": narrow}
    for kernel in ("attention_fwd", "attention_bwd_q", "attention_bwd_kv"):
        assert TRIPS[kernel](arguments) == tuple(map(Trips, trips))


def test_no_recorded_kernel_is_at_fault() -> None:
    """No spills, within shared memory, not two bytes at a time; every op on every target."""
    rows = record.read()
    assert [fault for row in rows.values() for fault in row.faults()] == []
    kernels = {row.kernel for row in rows.values()}
    assert {name.partition("_")[0] for name in kernels} == {"match", "merge", "attention", "align"}
    everywhere = itertools.product(TARGETS, kernels - {"align_fwd_held"})
    assert {(target, kernel) for target, kernel, _ in rows} == {*everywhere, ("sm_90", "align_fwd_held")}


WIDE = {
    "match_metric": 1.0, "match_once": 0.93, "match_best": 0.8, "match_pair": 0.64, "merge_fwd": 0.47,
    "merge_bwd": 0.33, "attention_fwd": 0.75, "attention_bwd_q": 0.7, "attention_bwd_kv": 0.45, "align_fwd": 0.57,
    "align_fwd_held": 0.58, "align_bwd": 0.72, "align_norm": 1.0, "align_pick": 0.87, "align_pivot": 0.84,
    "align_finish": 0.88,
}  # fmt: skip
"""The least share of the bytes that a kernel loads 16 at a time: tokens. The rest are sizes, sums and indices."""


def test_tokens_are_loaded_16_bytes_at_a_time() -> None:
    """On NVIDIA's, where strides allow, as every recorded case does: heads of 40, 72, 88 and 104 channels too.

    Of turned heads of 32 channels half a tile has less than 16 bytes for each thread.
    """
    for row in record.read().values():
        turned_32 = "HEAD_DIM=32" in row.configuration.split() and "ROTARY=" in row.configuration
        if row.target != "gfx942" and row.kernel in WIDE and not turned_32:
            moved = {width: int(width) * count for width, count in row.loads.items()}
            assert moved.get("16", 0) >= WIDE[row.kernel] * sum(moved.values()), row
    others = {row.kernel for row in record.read().values()} - WIDE.keys()
    assert others == {"match_sort", "match_select", "match_place"}  # which read no tokens


def test_what_the_other_gpus_use_fits_their_blocks() -> None:
    """8.6, 8.9 and 12.0 have 99 KiB of shared memory for a block, and take sm_80's rows."""
    assert max(row.shared for row in record.read().values() if row.target == "sm_80") <= 99 * 1024


ROW = record.Row("sm_90", "match_metric", "fp32", 64, 0, 4096, 4, 8, 300, {"other": 100}, {"16": 4}, {"16": 1}, "")


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


TUNED = replace(
    ROW, kernel="attention_fwd", configuration="bf16 BLOCK_M=64 BLOCK_N=64 HAS_SIZE=1", loop={"other": 100}, warps=4
)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"loop": {"other": 100}, "warps": 8, "blocks": 4}, ""),  # twice the tile, by twice the warps
        ({"loop": {"other": 200}}, ""),
        ({"loop": {"other": 201}}, "98.1 instructions of a warp for 1,000 elements of a tile, 97.7 before"),
        ({"loop": {"other": 200}, "blocks": 7}, "28 warps per multiprocessor, 32 before"),
    ],
)
def test_a_kernel_tuned_anew_is_held_to_the_recorded_tile_nearest_to_its_own(changed: dict, fault: str) -> None:
    """Within its target, dtype and shape."""
    new = replace(TUNED, configuration="bf16 BLOCK_M=128 BLOCK_N=64 HAS_SIZE=1", **changed)
    smaller = replace(TUNED, configuration="bf16 BLOCK_M=16 BLOCK_N=64 HAS_SIZE=1", loop={"other": 1})
    others = [replace(new, kernel="attention_bwd_q", blocks=32), replace(new, target="sm_80", blocks=32)]
    others.append(replace(new, configuration="bf16 BLOCK_M=64 BLOCK_N=64 HAS_SIZE=0", blocks=32))
    recorded = {row.key: row for row in (TUNED, smaller, *others)}
    said = [f"sm_90 attention_fwd {new.configuration}: {fault} ({TUNED.configuration})"] if fault else []
    assert list(record.regressions([new], recorded)) == said


KERNEL = """
import triton.language as tl
from triton.runtime.jit import JITFunction

OFFSET = tl.constexpr({offset})


@JITFunction
def helper(x):
    {words}
    return x + {added}


@JITFunction
def named_kernel(x, LENGTH: tl.constexpr):
    tl.store(x + tl.arange(0, LENGTH), helper(1) + OFFSET)
"""


def test_the_fingerprint_is_of_code_and_not_of_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that the kernel calls and reads, and of what it is specialised on."""
    monkeypatch.syspath_prepend(tmp_path)
    x = torch.empty(2)

    def made(name: str, length: int = 16, words: str = "pass", **values: int) -> str:
        (tmp_path / f"{name}.py").write_text(KERNEL.format(**{"offset": 1, "added": 1, "words": words} | values))
        functions = vars(importlib.import_module(name))
        for function in ("helper", "named_kernel"):
            functions[function].__module__ = "kernels"
        return made_of(Launch(functions["named_kernel"], 1, (x,), {"LENGTH": length}))

    first = made("first", words='"""Words."""')
    assert made("others", words='"""Others."""\n\n    # words') == first
    changed = [made("added", added=2), made("offset", offset=2), made("plain"), made("length", 32)]
    assert len({first, *changed}) == 5


def test_what_is_recorded_of_other_code_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed, new and gone."""
    launches = {("sm_90", name, "fp32"): name for name in ("same", "changed", "new")}
    monkeypatch.setattr(record, "launches", lambda arch: launches if arch == "sm_90" else {})
    monkeypatch.setattr(record, "made_of", lambda launch: f"of {launch}")
    rows = [replace(ROW, kernel=name, made_of=f"of {name}") for name in ("same", "gone")]
    rows.append(replace(ROW, kernel="changed", made_of="of something"))
    found = record.stale({row.key: row for row in rows})
    assert [name for _, name, _ in found] == ["changed", "gone", "new"]


def test_recording_compiles_what_is_stale_and_keeps_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing at all where a kernel became worse."""
    rows = {name: replace(ROW, kernel=name, made_of="of old code") for name in ("same", "changed", "gone", "new")}
    now = {name: replace(rows[name], made_of="of new code") for name in ("changed", "new")}
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(record, "RECORD", tmp_path / "resources.jsonl")
    record.write([rows["same"], rows["changed"], rows["gone"]])
    monkeypatch.setattr(record, "stale", lambda recorded: [rows[name].key for name in ("changed", "gone", "new")])
    monkeypatch.setattr(record, "compile_rows", lambda keys, workers: [replace(now["changed"], blocks=7), now["new"]])
    assert main(["--record"]) == 1
    assert record.read()[rows["changed"].key] == rows["changed"]
    monkeypatch.setattr(record, "compile_rows", lambda keys, workers: [now["changed"], now["new"]])
    assert main(["--record"]) == 0
    assert list(record.read().values()) == [now["changed"], now["new"], rows["same"]]


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
    with pytest.raises(RuntimeError, match="kernel was compiled to 2 loops where TRIPS has 1"):
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
from alt_fast_kernels.prediction.cases import match_case, merge_case
from alt_fast_kernels.prediction.model import Machine
from alt_fast_kernels.prediction.towers import Predictor
predictor = Predictor(Machine())
kernels = [predictor.op(match_case(2, 149, 12, 32, 74, every=every)).kernels[0] for every in (2, 4)]
print(*(launch.name for launch, _, time in kernels if time.predicted > 0), len({id(code) for _, code, _ in kernels}))
"""


def test_matchings_with_other_destinations_are_predicted_from_kernels_of_their_own() -> None:
    found = python("-c", OF_BOTH)
    assert found.stdout.split() == ["match_once", "match_once", "2"], found.stdout + found.stderr


CASES: dict[str, Callable[[], cases.Case]] = {
    "match": lambda: cases.match_case(2, 21, 2, 16, 4, torch.float32),
    "match of 1 in 4": lambda: cases.match_case(2, 21, 2, 16, 4, torch.float32, every=4),
    "merge": lambda: cases.merge_case(2, 21, 4, 16, torch.float32),
    "merge alone": lambda: cases.merge_case(2, 21, 4, 16, torch.float32, fused=False),
    "attention": lambda: cases.attention_case(2, 21, 2, 16, torch.float32),
    "attention, turned": lambda: cases.attention_case(2, 21, 2, 16, torch.float32, layout="halves"),
    "align": lambda: cases.align_case(5, 37, 16, torch.float32),
}


@pytest.mark.parametrize("name", list(CASES))
def test_cases_compute_what_the_reference_does(name: str) -> None:
    """So that what is measured is an op's work on random inputs, of which no two are equal."""
    case = CASES[name]()
    inputs = case.prepare()
    with use_backend("reference"):
        expected = case.call(inputs)
    torch.testing.assert_close(case.call(inputs), expected)
    (x, *_) = inputs if isinstance(inputs, tuple) else (inputs,)
    assert x.unique().numel() > 0.9 * x.numel()


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("arch", "tokens", "cos", "sin", "kept"),
    [
        ("sm_90", BF16, BF16, BF16, True),
        ("sm_100", FP16, FP16, FP16, True),
        ("sm_90", BF16, FP32, FP32, False),
        ("sm_90", BF16, BF16, FP32, False),
        ("sm_90", BF16, FP16, FP16, False),
        ("sm_90", FP32, BF16, BF16, False),
        ("sm_90", FP32, FP32, FP32, False),
        ("sm_80", BF16, BF16, BF16, False),
        ("gfx942", FP16, FP16, FP16, False),
    ],
)
def test_tables_of_16_bits_are_used_as_they_are_where_that_is_faster(
    arch: str, tokens: torch.dtype, cos: torch.dtype, sin: torch.dtype, kept: bool
) -> None:
    for interleaved in (False, True):
        rotary = Rotary(torch.ones(1, 21, 1, 16, dtype=cos), torch.zeros(1, 21, 1, 16, dtype=sin), interleaved)
        qkv = torch.randn(2, 21, 3, 2, 16, dtype=tokens, requires_grad=True)
        with use_backend("triton"), recording(arch) as launches:
            proportional_attention_qkvpacked(qkv, rotary=rotary).sum().backward()
        assert [launch.name for launch in launches] == ["attention_fwd", "attention_bwd_q", "attention_bwd_kv"]
        layout = "interleaved" if interleaved else "halves"
        for launch in launches:
            assert launch.options["ROTARY"] == (f"{layout}_16" if kept else layout)
            tables = launch.arguments()
            assert tables["cos"].dtype == tables["sin"].dtype == (tokens if kept else FP32)


def test_a_case_of_merge_joins_r_tokens_of_a_permutation() -> None:
    for backward in (False, True):
        case = cases.merge_case(3, 21, 4, 16, torch.float32, backward=backward)
        if backward:
            outputs, (x, weight, bias), upstream = case.prepare()
            grads: Any = case.call((outputs, (x, weight, bias), upstream))
            assert [grad.shape for grad in grads] == [x.shape, weight.shape, bias.shape]
            assert all(grad.isfinite().all() and grad.any() for grad in grads)
        else:
            _, _, plan = case.prepare()
            assert torch.equal(plan.order.sort(1).values, torch.arange(21, dtype=torch.int32).expand(3, -1))
            assert (plan.start[:, -1] == 4).all()


def test_pytorch_s_own_kernels_are_counted_with_bytes_and_flops() -> None:
    """Views and memory cost nothing; a product is not computed."""
    x, y = torch.randn(4, 6), torch.randn(6, 8)
    tokens, entities, index, stats = torch.randn(4, 64), torch.randn(8, 64), torch.arange(4), torch.zeros(4, 2)
    with Around() as around:
        z = x.T[:3].add(1.0)  # of 12 numbers
        torch.empty(1000)
        x.to(torch.float32), x.contiguous()  # which they are
        half = x.to(torch.bfloat16)
        x @ y
        torch.ops.alt_fast.align_backward(tokens, index, stats, tokens, entities, 0.5, None, 4)
    assert z.shape == (3, 4)
    add, copy, product, *others = around.calls
    assert copy.bytes == x.nbytes + half.nbytes
    assert add == TorchCall("add", 2 * 4 * 12)
    assert product == TorchCall("matmul", 4 * (24 + 48 + 32), 2 * 4 * 6 * 8)
    names = [call.name for call in others]
    assert (names.count("mean"), names.count("matmul")) == (1, 1)  # inside of our operator
    machine = Machine(bandwidth=1e6, gemm=1e6, launch=1e-3)
    assert predict_torch(add, machine) == pytest.approx(96e-6 + 1e-3)
    assert predict_torch(product, machine) == pytest.approx(416e-6 + 1e-3)
    assert predict_torch(TorchCall("matmul", 416, 3000), machine) == pytest.approx(3e-3 + 1e-3)


class HandMade(Predictor):
    """Ops take 1, 2 and 4 us; merging 4 more for a rotary block."""

    def __init__(self, machine: Machine, unsized: float = 1.0) -> None:
        """unsized: seconds of attention without sizes."""
        super().__init__(machine)
        self.unsized = unsized

    def op(self, case: cases.Case) -> Prediction:
        seconds = {"attention": 1e-6, "match": 2e-6, "merge": 4e-6}[case.op]
        if case.op == "attention" and "sized" not in case.shape:
            seconds = self.unsized
        kernel = Launch(Named(), 1, (), {}), code(1), Time(0, 0, 0, 0, seconds + 8e-6 * ("halves" in case.shape))
        return Prediction(case, (kernel,), (), 1e-6)


SMALL = Tower("small", 128, 2, 3, 5)
"""Three layers of 128 channels; 5 tokens."""
MACHINE = Machine(bandwidth=1e9, gemm=1e12, attention=1e12, launch=1e-6)


def test_a_block_is_the_sum_of_its_parts() -> None:
    """By hand: 2 images, 5 tokens, of which 2 merge, on a machine of 1 GB/s, 1 TFLOP/s and 1 us for a launch."""
    block = HandMade(MACHINE).block(SMALL, 2, 5, 2)
    assert (block.attention, block.matching, block.merging) == (1e-6, 2e-6, 4e-6)
    before, behind = 2 * 5 * 4 * 128**2 * 2 / 1e12, 2 * 3 * 8 * 128**2 * 2 / 1e12  # GEMMs of 2 FLOPs for a MAC
    one_pass = 4 * 2 * 3 * 128 * 2 / 1e9 + 1e-6
    assert block.rest == pytest.approx(before + behind + 4e-6 + one_pass)
    assert block.add_norm == pytest.approx(4 * 2 * 5 * 128 * 2 / 1e9 + 1e-6)
    assert block.time == pytest.approx(7e-6 + block.rest)
    assert block.overhead == pytest.approx(2e-6 / block.time)  # merging takes less than what it stands for
    assert HandMade(MACHINE).block(SMALL, 2, 5, 2, "halves").attention == 9e-6
    projection = 2 * 5 * 128**2 * 2 / 1e12 + 1e-6
    aside = replace(block, matching=2e-6 - 1e-6 - projection)
    assert aside.matching < 0  # beside attention and its projection, which take longer
    assert HandMade(MACHINE).block(SMALL, 2, 5, 2, aside=True) == replace(aside, matching=0)
    fast = HandMade(replace(MACHINE, gemm=1e30, launch=0.25e-6)).block(SMALL, 2, 5, 2, aside=True)
    assert fast.matching == pytest.approx(0.75e-6)  # what is left of it
    assert HandMade(MACHINE).block(SMALL, 17, 5, 2, aside=True).matching == 2e-6  # of many images all
    plain = HandMade(MACHINE).block(SMALL, 2, 5, 0)
    assert (plain.matching, plain.merging) == (0, plain.add_norm)


def test_a_tower_s_speed_up_is_the_ratio_of_its_layers_times() -> None:
    """5, 3 and 2 tokens: half of what is not the class token may go."""
    predictor = HandMade(MACHINE)
    merged = [predictor.block(SMALL, 2, tokens, r).time for tokens, r in ((5, 2), (3, 1), (2, 0))]
    flops, moved = 4 * 2 * 128**2 * 128, 4 * 2 * 5 * 128 * 2
    attention = max(flops / 1e12, moved / 1e9) + 1e-6
    plain = attention + 2 * 5 * 12 * 128**2 * 2 / 1e12 + 4e-6 + 2 * (moved / 1e9 + 1e-6)
    assert predictor.unmerged_block(SMALL, 2, 5) == pytest.approx(plain)
    ours = HandMade(MACHINE, 1e-6).unmerged_block(SMALL, 2, 5)  # whichever is faster
    assert ours == pytest.approx(plain - attention + 1e-6)
    assert HandMade(MACHINE, 1e-6).unmerged_block(SMALL, 2, 5, ours=False) == pytest.approx(plain)
    assert HandMade(MACHINE, 1e-6).speedup(SMALL, 2, 2) == pytest.approx(3 * ours / sum(merged))
    assert HandMade(MACHINE, 1e-6).speedup(SMALL, 2, 2, ours=False) == pytest.approx(3 * plain / sum(merged))
    assert predictor.speedup(SMALL, 2, 2) == pytest.approx(3 * plain / sum(merged))
    assert predictor.speedup(SMALL, 2, 2, True) == pytest.approx(3 * plain / (sum(merged) - 2 * 2e-6))


def test_blocks_and_towers_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    predictor = HandMade(replace(MACHINE, bandwidth=1e30, gemm=1e30))
    print_blocks(predictor)
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "| ViT-B/16 | 256 | 197 | 1.0 | 2.0 | 4.0 | 5.0 | 41.7% |"  # (2 + 4 - 1) / 12
    assert rows[1] == "| ViT-B/16, rotary halves | 256 | 197 | 9.0 | 2.0 | 4.0 | 5.0 | 25.0% |"
    assert len(rows) == 2 * 3 * (3 + 2)
    print_towers(predictor)
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 9
    for row, (tower, r, batch) in zip(
        rows, [(t, r, b) for t, r in ((B16, 8), (B16, 13), (L14, 8)) for b in (256, 8, 1)], strict=True
    ):
        ways = [(aside, ours) for ours in (False, True) for aside in (False, True)]
        told = " | ".join(f"{predictor.speedup(tower, batch, r, *way):.2f}" for way in ways)
        assert row == f"| {tower.name} | {batch} | {r} | {told} |"


class FakeGPU:
    """Stands in for torch.cuda: streams are names, time is what calls take, and a capture may use one stream only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream, self.now, self.captured = "default", 0.0, 0.0
        self.capturing = False
        for name in ("Stream", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, lambda: SimpleNamespace(wait_stream=lambda other: None))
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "graph", self.capture)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=self.replay))
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(self))

    @contextmanager
    def on(self, stream: object) -> Iterator[None]:
        before, self.stream = self.stream, stream  # type: ignore[assignment]
        yield
        self.stream = before

    @contextmanager
    def capture(self, graph: object, stream: object) -> Iterator[None]:
        with self.on(stream):
            self.capturing = True
            yield
            self.capturing = False

    def replay(self) -> None:
        self.now += self.captured

    def call(self, prepared_on: object) -> None:
        """A backward: it runs on the stream of its forward."""
        if self.capturing and prepared_on is not self.stream:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captured += 0.25 * self.capturing  # ms


class Event:
    """A time of the fake GPU."""

    def __init__(self, gpu: FakeGPU) -> None:
        self.gpu, self.at = gpu, 0.0

    def record(self, stream: object) -> None:
        self.at = self.gpu.now

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: "Event") -> float:
        return other.at - self.at


def test_a_call_is_measured_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGPU(monkeypatch)
    case = cases.Case("op", "shape", lambda: gpu.stream, gpu.call, Cost(1, 1))
    assert measured(case) == pytest.approx(0.25e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("backward", [False, True])
def test_calls_are_measured_on_a_gpu(backward: bool) -> None:
    torch.use_deterministic_algorithms(False)  # filling memory is no part of the graph
    shapes = (cases.merge_case(8, 197, 8, 768, backward=backward), cases.align_case(808, 5000, 512, backward=backward))
    for case in (*shapes, cases.attention_case(8, 197, 12, 64, backward=backward)):
        assert 1e-6 < measured(case) < 1e-2


def test_a_call_that_cannot_be_measured_says_why_and_the_next_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_once(case: cases.Case) -> float:
        if case.shape.startswith("B=2"):
            raise RuntimeError("out of memory\nmore words")
        return 2e-6

    both = [cases.attention_case(batch, 21, 2, 16) for batch in (2, 3)]
    monkeypatch.setattr(predict_command, "cases", lambda: [*both, cases.match_case(2, 21, 2, 16, 4)])
    monkeypatch.setattr(predict_command, "measured", fail_once)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "device", lambda name: nullcontext())
    assert predict_command.print_times(HandMade(MACHINE), "attention") == 1
    _, _, first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("named 1.0 (memory) | not measured: out of memory | |")
    assert second.endswith("named 1.0 (memory) | 2.0 | -50% |")


def test_the_host_s_time_is_a_median_of_rounds_and_binds_every_launch() -> None:
    """A clock that ticks a second for every launch: a matching of 32 images is two, and one round is slow."""
    bound: list[str] = []

    def bind(launch: Launch) -> None:
        bound.append(launch.name)
        if len(bound) == 14:
            bound.extend(["slow"] * 99)

    block = host.block_cases(Tower("small", 32, 2, 1, 21))
    seconds = host.host_seconds(block, rounds=3, calls=2, bind=bind, clock=lambda: float(len(bound)))
    assert seconds == {"attention": 1.0, "match": 2.0, "merge": 1.0}
    of_a_block = ["attention_fwd", "match_metric", "match_pair", "merge_fwd"]
    assert [name for name in bound if name != "slow"][-7:] == [of_a_block[0], *2 * of_a_block[1:3], *2 * of_a_block[3:]]


def test_what_alignment_reads_again() -> None:
    """Both operands for every tile; with tokens held, entities for every 128 tokens and tokens for every part."""
    found = {}
    for tau in (0.5, 0.01):
        (launch,) = (
            launch
            for launch in cases.align_case(25856, 5000, 512, tau=tau).launches("sm_90")
            if launch.name in CACHE_BYTES
        )
        found[launch.name] = CACHE_BYTES[launch.name](launch.arguments())
    assert found == {
        "align_fwd_held": 202 * 5000 * 1024 + 5 * 25856 * 1024,
        "align_fwd": 202 * 40 * (128 + 128) * 1024,
    }


SOME = """
import sys
from alt_fast_kernels import predict
*documented, tower, batch, tokens = sys.argv[1:]
cases = [case for case in predict.cases() if f"| {case.op} | {case.shape} |" in documented]
predict.cases = lambda: cases
predict.LENGTHS = {one: (int(tokens),) for one in predict.LENGTHS if one.name == tower}
predict.BATCHES = (int(batch),)
predictor = predict.Predictor(predict.Machine())
predict.print_times(predictor)
predict.print_blocks(predictor)
predict.print_towers(predictor)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="beside a GPU the tables have measured times, too")
@of_recorded_code
def test_some_of_the_documented_predictions_are_the_command_s() -> None:
    """Others every time: of ops, of blocks and of towers."""
    text = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
    rows = re.findall(r"^\| .* \|$", text.partition("## Predicted")[2].partition("\n## ")[0], re.MULTILINE)
    ops = [row for row in rows if re.match(r"\| (match|merge|attention|align)\b", row)]
    chosen = random.sample(ops, 3)
    tower = random.choice(list(predict_command.LENGTHS))
    batch, tokens = random.choice(predict_command.BATCHES), random.choice(predict_command.LENGTHS[tower])
    shapes = ["|".join([*row.split("|")[:3], ""]) for row in chosen]
    print(*shapes, tower.name, batch, tokens)
    found = python("-c", SOME, *shapes, tower.name, str(batch), str(tokens))
    printed = [line for line in found.stdout.splitlines() if re.match(r"\| (match|merge|attention|align|ViT)\b", line)]
    printed = [line for line in printed if ", rotary" not in line]  # blocks that the page leaves out
    assert len(printed) == 3 + 1 + 3, found.stdout + found.stderr
    assert [line for line in printed if line not in rows] == []


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
