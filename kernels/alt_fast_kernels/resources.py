"""Compile every shipped launch configuration for every target, without a GPU, and tabulate what it takes.

    python -m alt_fast_kernels.resources [--target sm_90] [--kernel attention]

Registers and stack (a stack means spills) are read from the machine code, shared memory from Triton. Exits with 1 when
a kernel spills or needs more shared memory than a block of its target may have.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from alt_fast_kernels.align import triton as align
from alt_fast_kernels.attention import triton as attention
from alt_fast_kernels.configs import Arch
from alt_fast_kernels.launch import Launch
from alt_fast_kernels.match import MAX_CHANNELS, MergePlan
from alt_fast_kernels.match.triton import match_launches
from alt_fast_kernels.merge import triton as merge

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_LIMIT = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
"""Bytes of shared memory a block may have. sm_80's row also serves 86 and 89, whose limit is the lower one."""

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
HEAD_DIMS = (32, 64, 80, 96, 128)
WIDTHS = (192, 384, 768, 1024, 1280, MAX_CHANNELS)  # ViT-Ti, S, B, L and H, and the widest that the kernels take
KEYS = ((12, 32), (12, 64), (16, 128), (1, 768), (1, MAX_CHANNELS))  # heads and channels; one head: a metric
JOINT_WIDTH = 512  # of CLIP B; the align kernels take the width as a number, not as a tile


@dataclass(frozen=True)
class Row:
    """What a kernel takes on a target. registers: per thread. spills: bytes of stack, or spilled registers (AMD)."""

    target: Arch
    kernel: str
    case: str
    registers: int
    spills: int
    shared: int

    @property
    def fits(self) -> bool:
        return self.spills == 0 and self.shared <= SHARED_LIMIT[self.target]


class _Target:
    """Stands in for a GPU driver, so that Triton compiles for a target that is not here."""

    def __init__(self, name: Arch) -> None:
        self.name = name

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.name]

    def get_current_device(self) -> int:
        return list(TARGETS).index(self.name)

    def get_current_stream(self, device: int) -> int:
        return 0


def launches(arch: Arch) -> Iterator[tuple[str, str, Launch]]:
    """(op, case, launch) of every kernel in every configuration that a user can reach."""
    for name, dtype in DTYPES.items():
        for heads, dim in KEYS:
            for launch in _match(dtype, heads, dim, arch):
                yield "match", f"{name} H={heads} D={dim}", launch
        for width in WIDTHS:
            for fused in (False, True):
                case = f"{name} C={width}{' fused' if fused else ''}"
                for launch in _merge(dtype, width, fused, arch):
                    yield "merge", case, launch
        for dim in HEAD_DIMS:
            for sized in (False, True):
                for launch in _attention(dtype, dim, sized, arch):
                    yield "attention", f"{name} D={dim}{' sized' if sized else ''}", launch
        for noise in (False, True):
            for launch in _align(dtype, noise, arch):
                yield "align", f"{name}{' noise' if noise else ''}", launch


BATCH, NUM_TOKENS, R = 2, 197, 8
NUM_SLOTS = NUM_TOKENS - R


def _plan() -> MergePlan:
    slot = torch.empty(BATCH, NUM_TOKENS, dtype=torch.int32)
    return MergePlan(slot, slot, torch.empty(BATCH, NUM_SLOTS + 1, dtype=torch.int32), NUM_SLOTS)


def _match(dtype: torch.dtype, heads: int, dim: int, arch: Arch) -> tuple[Launch, ...]:
    return match_launches(torch.empty(BATCH, NUM_TOKENS, 3, heads, dim, dtype=dtype)[:, :, 1], 1, _plan(), arch)


def _merge(dtype: torch.dtype, width: int, fused: bool, arch: Arch) -> Iterator[Launch]:
    x, out = torch.empty(BATCH, NUM_TOKENS, width, dtype=dtype), torch.empty(BATCH, NUM_SLOTS, width, dtype=dtype)
    segments = merge.Segments(torch.empty(BATCH, NUM_TOKENS), *_plan()[1:3])
    stats, weight = torch.empty(BATCH, NUM_SLOTS), torch.empty(width)
    inputs = merge.Inputs(x, x if fused else None, segments, merge.Norm(weight, weight, 1e-5) if fused else None)
    yield merge.merge_fwd_launch(inputs, merge.Outputs(out, stats, out, stats, stats), arch)
    partial = torch.empty(2, merge.backward_programs(out, arch), width)
    norm = merge.NormBackward(out, weight, stats, stats, partial) if fused else None
    yield merge.merge_bwd_launch(out, out, segments, norm, x, arch)


def _attention(dtype: torch.dtype, dim: int, sized: bool, arch: Arch) -> Iterator[Launch]:
    q, k, v = torch.empty(BATCH, NUM_TOKENS, 3, 12, dim, dtype=dtype).unbind(2)
    out, lse2 = torch.empty(BATCH, NUM_TOKENS, 12 * dim, dtype=dtype), torch.empty(BATCH, 12, NUM_TOKENS)
    inputs = attention.Inputs(q, k, v, torch.empty(BATCH, NUM_TOKENS) if sized else None, dim**-0.5)
    yield attention.attention_fwd_launch(inputs, out, lse2, arch)
    saved, grads = attention.Saved(out, lse2, out), attention.Gradients(q, k, v)
    yield from attention.attention_bwd_launches(inputs, saved, lse2, grads, arch)


def _align(dtype: torch.dtype, noise: bool, arch: Arch) -> Iterator[Launch]:
    tokens, entities = torch.empty(101, JOINT_WIDTH, dtype=dtype), torch.empty(5000, JOINT_WIDTH, dtype=dtype)
    seed = torch.zeros(1, dtype=torch.int64) if noise else None
    inputs = align.Inputs(tokens, entities, torch.empty(101), torch.empty(5000), seed)
    parts, saved = torch.empty(align.SPLITS, 101), align.Saved(torch.empty(2, 101), tokens)
    yield align.align_fwd_launch(inputs, parts, parts.int(), parts, arch)
    yield align.align_bwd_sum_launch(inputs, saved, parts, arch)
    grad_logits = torch.empty(101, align.CHUNK, dtype=dtype)
    yield align.align_bwd_logits_launch(inputs, saved, parts[0], align.CHUNK, grad_logits, arch)


def measure(arch: Arch, op: str, case: str, launch: Launch) -> Row:
    """Compile one launch for one target and read what it takes."""
    driver.set_active(_Target(arch))
    compiled = launch.kernel.warmup(*launch.args, grid=(launch.grid,), **launch.options)
    name = f"{op}: {launch.kernel.__name__.removesuffix('_kernel')}"
    if TARGETS[arch].backend == "hip":
        found = {
            field: int(value)
            for field, value in re.findall(r"\.(vgpr_count|vgpr_spill_count):\s*(\d+)", compiled.asm["amdgcn"])
        }
        return Row(arch, name, case, found["vgpr_count"], found["vgpr_spill_count"], compiled.metadata.shared)
    registers, stack = _cubin_usage(compiled.asm["cubin"])
    return Row(arch, name, case, registers, stack, compiled.metadata.shared)


def _cubin_usage(cubin: bytes) -> tuple[int, int]:
    """Registers per thread and bytes of stack, as cuobjdump reads them from machine code."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no register count: {text!r}")
    return int(found[1]), int(found[2])


def _measure_slice(arch: Arch, kernel: str | None, part: int, parts: int) -> list[Row]:
    wanted = [item for item in launches(arch) if kernel is None or kernel in item[0]]
    return [measure(arch, *item) for item in wanted[part::parts]]


def table(targets: list[Arch], kernel: str | None, workers: int) -> list[Row]:
    """Return the rows of all launches on all targets, in order, compiled by `workers` processes."""
    with ProcessPoolExecutor(workers) as pool:
        parts = [
            [pool.submit(_measure_slice, target, kernel, part, workers) for part in range(workers)]
            for target in targets
        ]
        slices = [[future.result() for future in futures] for futures in parts]
    rows = []
    for found in slices:
        for i in range(max(map(len, found))):
            rows += [part[i] for part in found if i < len(part)]
    return rows


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 when something does not fit."""
    parser = argparse.ArgumentParser(prog="python -m alt_fast_kernels.resources", description=__doc__.split("\n")[0])
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="repeatable; all by default")
    parser.add_argument("--kernel", help="only ops whose name contains this")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that compile")
    options: Any = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("unset TRITON_INTERPRET: interpreted kernels are not compiled")
    rows = table(options.target or list(TARGETS), options.kernel, options.workers)
    print(
        f"Triton {triton.__version__}. Registers per thread; bytes of spills (gfx942: registers) and shared memory.\n"
    )
    print("| target | kernel | case | registers | spills | shared |\n|---|---|---|--:|--:|--:|")
    for row in rows:
        mark = "" if row.fits else " **does not fit**"
        print(f"| {row.target} | {row.kernel} | {row.case} | {row.registers} | {row.spills} | {row.shared}{mark} |")
    bad = sum(not row.fits for row in rows)
    print(f"\n{len(rows)} kernels compiled, {bad} do not fit")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
