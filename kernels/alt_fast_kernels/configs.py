"""The launch configurations of every kernel, one checked-in table, and the row of it that a device uses.

The values were chosen by hand from compiled code: the largest tiles that neither spill registers nor need more shared
memory than a block may have, on every target (see `resources`). No autotuning at run time: tokens shrink from layer to
layer, and a search per length would never end.
"""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import torch

Arch = str
"""sm_80 (and newer up to 89), sm_90 (and newer), sm_100, or gfx942 for AMD."""

Config = Mapping[str, int]
"""What Triton is given by keyword: the kernel's tile sizes, num_warps, num_stages and, on NVIDIA, maxnreg.

maxnreg: registers a thread may take. Left alone, ptxas spills some to reach the next step of occupancy.
"""

ByWidth = dict[int, Config]
"""Configurations by the largest block width each one serves."""

NVIDIA, HOPPER, AMD = "sm_80 sm_90 sm_100", "sm_90 sm_100", "gfx942"
ANY_ARCH, ANY_DTYPE, ANY_WIDTH = f"{NVIDIA} {AMD}", "any", 0


def _config(num_warps: int, num_stages: int = 1, maxnreg: int | None = None, **tile: int) -> Config:
    limit = {} if maxnreg is None else {"maxnreg": maxnreg}
    return MappingProxyType({**tile, "num_warps": num_warps, "num_stages": num_stages, **limit})


def _rows(num_warps: int, maxnreg: int | None = None) -> ByWidth:
    """Whole rows: as many as make 2,048 elements."""
    return {2**i: _config(num_warps, 1, maxnreg, ROWS=2048 >> i) for i in range(4, 12)}


def _row(num_warps: int, maxnreg: int | None = None) -> ByWidth:
    """One row, wider than that."""
    return {8192: _config(num_warps, 1, maxnreg, ROWS=1)}


def _mn(block_m: int, block_n: int, num_warps: int, num_stages: int, maxnreg: int | None = None) -> Config:
    """A program owns BLOCK_M rows and streams over the others, BLOCK_N at a time."""
    return _config(num_warps, num_stages, maxnreg, BLOCK_M=block_m, BLOCK_N=block_n)


def _mnc(
    block_m: int, block_n: int, block_c: int, num_warps: int, num_stages: int, maxnreg: int | None = None
) -> ByWidth:
    """BLOCK_M tokens by BLOCK_N entities, BLOCK_C channels at a time, for every width."""
    return {ANY_WIDTH: _config(num_warps, num_stages, maxnreg, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_C=block_c)}


TABLE: tuple[tuple[str, str, str, ByWidth], ...] = (
    # kernels, architectures, dtypes (half: fp16 and bf16), configurations by block width
    #
    # match; the width is that of one head of the keys
    ("match_metric", NVIDIA, ANY_DTYPE, {**_rows(4, 128), **_row(4, 128)}),
    ("match_metric", AMD, ANY_DTYPE, {**_rows(4), **_row(4)}),
    ("match_best", NVIDIA, ANY_DTYPE, {ANY_WIDTH: _config(4, 1, 96, BLOCK_A=32, BLOCK_B=32, BLOCK_C=32)}),
    ("match_best", AMD, ANY_DTYPE, {ANY_WIDTH: _config(4, 1, BLOCK_A=32, BLOCK_B=32, BLOCK_C=32)}),
    ("match_plan", ANY_ARCH, ANY_DTYPE, {ANY_WIDTH: _config(8, 1, BLOCK=64)}),
    # merge; the width is that of a token
    ("merge_fwd", NVIDIA, ANY_DTYPE, {**_rows(4, 128), **_row(8, 255)}),
    ("merge_bwd", NVIDIA, ANY_DTYPE, {**_rows(4, 168), **_row(8, 255)}),
    ("merge_fwd merge_bwd", AMD, ANY_DTYPE, {**_rows(4), **_row(8)}),
    # attention; the width is that of a head
    ("attention_fwd", "sm_80", "fp32", {128: _mn(32, 32, 8, 2)}),
    ("attention_fwd", "sm_80", "half", {64: _mn(64, 64, 4, 2), 128: _mn(64, 32, 4, 2)}),
    ("attention_fwd", HOPPER, "fp32", {64: _mn(32, 32, 8, 2), 128: _mn(32, 16, 8, 2)}),
    ("attention_fwd", HOPPER, "half", {128: _mn(64, 64, 4, 2, 255)}),
    ("attention_fwd", AMD, "fp32", {128: _mn(32, 32, 4, 1)}),
    ("attention_fwd", AMD, "half", {64: _mn(64, 64, 4, 1), 128: _mn(64, 32, 4, 1)}),
    ("attention_bwd_q", NVIDIA, "fp32", {64: _mn(32, 32, 8, 2), 128: _mn(32, 16, 8, 2)}),
    ("attention_bwd_q", "sm_80", "half", {128: _mn(64, 64, 4, 2)}),
    ("attention_bwd_q", HOPPER, "half", {128: _mn(64, 64, 4, 2, 255)}),
    ("attention_bwd_q", AMD, "fp32", {128: _mn(32, 32, 4, 1)}),
    ("attention_bwd_q", AMD, "half", {64: _mn(64, 64, 4, 1), 128: _mn(64, 32, 4, 1)}),
    ("attention_bwd_kv", "sm_80", "fp32", {128: _mn(32, 32, 8, 2)}),
    ("attention_bwd_kv", "sm_80", "half", {64: _mn(64, 32, 4, 2), 128: _mn(64, 64, 8, 2)}),
    ("attention_bwd_kv", HOPPER, "fp32", {64: _mn(32, 32, 8, 2), 128: _mn(32, 16, 8, 2)}),
    ("attention_bwd_kv", HOPPER, "half", {128: _mn(64, 64, 8, 2, 255)}),
    ("attention_bwd_kv", AMD, "fp32", {128: _mn(32, 32, 4, 1)}),
    ("attention_bwd_kv", AMD, "half", {128: _mn(64, 32, 4, 1)}),
    # align, all three kernels of it, without noise and with
    ("align align_noisy", NVIDIA, "fp32", _mnc(64, 32, 32, 8, 2, 128)),
    ("align align_noisy", AMD, "fp32", _mnc(64, 32, 32, 8, 1)),
    ("align", "sm_80 sm_100", "half", _mnc(128, 128, 32, 8, 3)),
    ("align", "sm_90", "half", _mnc(128, 128, 64, 8, 3)),
    ("align", AMD, "half", _mnc(128, 128, 32, 8, 1)),
    ("align_noisy", "sm_80 sm_100", "half", _mnc(128, 64, 32, 8, 3)),
    ("align_noisy", "sm_90", "half", _mnc(128, 64, 64, 8, 3)),
    ("align_noisy", AMD, "half", _mnc(128, 64, 32, 8, 1)),
)

_DTYPES = {torch.float32: "fp32", torch.float16: "half", torch.bfloat16: "half"}


@cache
def config_of(kernel: str, arch: Arch, dtype: torch.dtype, width: int = ANY_WIDTH) -> Config:
    """Look up the configuration of a kernel whose tile is `width` wide. Raises ValueError when the table has none."""
    for kernels, archs, dtypes, by_width in TABLE:
        fits = kernel in kernels.split() and arch in archs.split() and dtypes in (ANY_DTYPE, _DTYPES.get(dtype))
        bounds = [bound for bound in by_width if bound >= width]
        if fits and bounds:
            return by_width[min(bounds)]
    raise ValueError(f"configs.TABLE has no row for {kernel} on {arch} in {dtype} at width {width}")


@cache
def arch_of(device: torch.device) -> Arch:
    """Name the architecture whose rows a device uses; CPU tensors (interpreter) use sm_80's."""
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return {8: "sm_80", 9: "sm_90"}.get(major, "sm_100" if major > 9 else "sm_80")
