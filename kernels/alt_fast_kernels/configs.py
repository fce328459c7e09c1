"""The launch configurations of every kernel, one checked-in table, and the row of it that a device uses.

The values were chosen by hand from compiled code: the largest tiles that neither spill registers nor need more shared
memory than a block may have, on every target (see `predict`). No autotuning at run time: tokens shrink from layer to
layer, and a search per length would never end.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType
from typing import Any

import torch

Arch = str
"""sm_80, sm_90 (Hopper), sm_100 (datacentre Blackwell), or gfx942 for AMD.

sm_80's rows fit blocks of 99 KiB of shared memory, and serve every other NVIDIA GPU: 8.6, 8.9 and 12.0 have no more.
"""

Config = Mapping[str, Any]
"""What Triton is given by keyword: tile sizes, PRECISION of products, num_warps, num_stages and, on NVIDIA, maxnreg.

maxnreg: registers a thread may take. Left alone, ptxas spills some to reach the next step of occupancy.
"""

ByWidth = dict[int, Config]
"""Configurations by the largest width each one serves."""

NVIDIA, HOPPER, AMD = "sm_80 sm_90 sm_100", "sm_90 sm_100", "gfx942"
TURNS_16 = HOPPER.split()
"""Where rotary tables of 16 bits are used as they are. Elsewhere kernels would spill, or, on AMD, take longer."""
SUMS_BY_PRODUCT = {("sm_80", False), ("sm_90", False), ("sm_90", True)}
"""Where tensor cores sum attention's weights of 16 bits, in fewer instructions: architecture, and whether tokens turn.

AMD would need more of them, and sm_80 would spill where tokens turn; of sm_100's code the model cannot tell.
"""

HOLDS_TOKENS = ("sm_90",)
"""Where alignment's forward holds 16-bit tokens in registers: tensor cores then read nothing but entities."""

APPROXIMATES = {(arch, 2) for arch in NVIDIA.split()}
"""Where alignment draws its noise with the special function unit's logarithm: architecture, bytes of a token's numbers.

Logits of 16-bit tokens are off by more.
"""

ALIGN = "align_fwd align_fwd_online align_bwd"
ANY_ARCH, ANY_DTYPE, ANY_WIDTH, MAX_WIDTH = f"{NVIDIA} {AMD}", "any", 0, 8192


def _config(num_warps: int, num_stages: int = 1, maxnreg: int | None = None, **tile: Any) -> Config:
    limit = {} if maxnreg is None else {"maxnreg": maxnreg}
    return MappingProxyType({**tile, "num_warps": num_warps, "num_stages": num_stages, **limit})


def _rows(num_warps: int, maxnreg: int | None = None, widths: range = range(4, 12)) -> ByWidth:
    """Whole rows of 2**width channels: as many as make 2,048 elements."""
    return {2**i: _config(num_warps, 1, maxnreg, ROWS=2048 >> i) for i in widths}


def _row(num_warps: int, maxnreg: int | None = None) -> ByWidth:
    """One row, wider than that."""
    return {8192: _config(num_warps, 1, maxnreg, ROWS=1)}


def _mn(block_m: int, block_n: int, num_warps: int, num_stages: int, maxnreg: int | None = None) -> Config:
    """A program owns BLOCK_M rows and streams over the others, BLOCK_N at a time."""
    return _config(num_warps, num_stages, maxnreg, BLOCK_M=block_m, BLOCK_N=block_n)


def _short_tails(by_width: ByWidth) -> ByWidth:
    """The same, but a short tail of rows is streamed 16 at a time: not of heads of 32, whose loads would be narrow."""
    narrow = {width: MappingProxyType({**config, "NARROW": 16}) for width, config in by_width.items()}
    return {32: by_width[min(by_width)], **narrow}


def _mnc(
    block_m: int, block_n: int, block_c: int, num_warps: int, num_stages: int, maxnreg: int | None = None
) -> ByWidth:
    """BLOCK_M tokens by BLOCK_N entities, BLOCK_C channels at a time, for every width."""
    return {ANY_WIDTH: _config(num_warps, num_stages, maxnreg, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_C=block_c)}


def _scores(precision: str, block_c: int = 32) -> Config:
    """BLOCK_A sources by BLOCK_B destinations, BLOCK_C channels at a time."""
    return _config(4, 1, BLOCK_A=64, BLOCK_B=64, BLOCK_C=block_c, PRECISION=precision)


def _image(precision: str, num_warps: int, **tile: int) -> Config:
    """All sources by all destinations; merged tokens are put in order CHOSEN at a time."""
    return _config(num_warps, 1, PRECISION=precision, CHOSEN=16, **tile)


TABLE: tuple[tuple[str, str, str, ByWidth], ...] = (
    # kernels, architectures, dtypes (half: fp16 and bf16), configurations by width
    #
    # match; the width is that of one head of the keys
    ("match_metric", NVIDIA, "half", {**_rows(4, 128), **_row(4, 128)}),
    ("match_metric", NVIDIA, "fp32", {**_rows(8, 128), **_row(4, 128)}),
    ("match_metric", AMD, ANY_DTYPE, {**_rows(4), **_row(4)}),
    # scores; the width is that of the metric. Tensor cores cut off sums, the more the longer: wide ones are exact.
    # Products in TF32 are split by the kernel where that is shorter: elsewhere than on sm_90 it is not, or spills
    ("match_best", "sm_80 sm_100", ANY_DTYPE, {128: _scores("tf32x3"), MAX_WIDTH: _scores("ieee")}),
    ("match_best", "sm_90", ANY_DTYPE, {128: _scores("split", 64), MAX_WIDTH: _scores("ieee")}),
    ("match_best", AMD, ANY_DTYPE, {MAX_WIDTH: _scores("ieee")}),
    # whole images; the width is the number of sources or of destinations, the larger
    ("match_pair", "sm_80", ANY_DTYPE, {64: _image("tf32x3", 4, BLOCK_C=16), 128: _image("tf32x3", 8, BLOCK_C=16)}),
    ("match_pair", "sm_90", ANY_DTYPE, {64: _image("split", 4, BLOCK_C=64), 128: _image("split", 8, BLOCK_C=64)}),
    ("match_pair", "sm_100", ANY_DTYPE, {64: _image("tf32x3", 4, BLOCK_C=32), 128: _image("tf32x3", 8, BLOCK_C=32)}),
    ("match_pair", AMD, ANY_DTYPE, {64: _image("ieee", 4, BLOCK_C=32), 128: _image("ieee", 8, BLOCK_C=32)}),
    ("match_pair_wide", NVIDIA, ANY_DTYPE, {64: _image("ieee", 4, BLOCK_C=32), 128: _image("ieee", 16, BLOCK_C=32)}),
    ("match_pair_wide", AMD, ANY_DTYPE, {64: _image("ieee", 4, BLOCK_C=32), 128: _image("ieee", 8, BLOCK_C=32)}),
    ("match_once", "sm_80", ANY_DTYPE, {64: _image("ieee", 8), 128: _image("ieee", 16)}),  # tf32x3 needs 128 KiB
    ("match_once", "sm_90", ANY_DTYPE, {64: _image("split", 4), 128: _image("split", 8)}),
    ("match_once", "sm_100", ANY_DTYPE, {64: _image("tf32x3", 4), 128: _image("tf32x3", 8)}),
    ("match_once", AMD, ANY_DTYPE, {64: _image("ieee", 4), 128: _image("ieee", 8)}),
    # the width is how many numbers are sorted
    ("match_sort", ANY_ARCH, ANY_DTYPE, {256: _config(4, RUN=256), 1024: _config(8, RUN=1024)}),
    ("match_search", ANY_ARCH, ANY_DTYPE, {ANY_WIDTH: _config(4, BLOCK=256, SEARCHED=8, COUNTED=1024)}),
    # merge; the width is that of a token
    ("merge_fwd", NVIDIA, ANY_DTYPE, {**_rows(4, 128), **_row(8, 255)}),
    # Backward's 512 programs with LayerNorm must all be resident: four on each of 132 multiprocessors.
    ("merge_bwd", NVIDIA, "half", {**_rows(4, 168, range(4, 9)), **_rows(4, 128, range(9, 12)), **_row(16, 128)}),
    ("merge_bwd", NVIDIA, "fp32", {**_rows(4, 168, range(4, 10)), **_rows(4, 128, range(10, 12)), **_row(16, 128)}),
    ("merge_fwd merge_bwd", AMD, ANY_DTYPE, {**_rows(4), **_row(8)}),
    # attention; the width is that of a head
    ("attention_fwd", "sm_80", "fp32", {64: _mn(32, 32, 8, 2, 255), 128: _mn(32, 32, 8, 2)}),
    ("attention_fwd", "sm_80", "half", _short_tails({64: _mn(64, 64, 4, 2), 128: _mn(64, 32, 4, 2)})),
    ("attention_fwd", HOPPER, "fp32", {64: _mn(32, 32, 8, 2), 128: _mn(32, 16, 8, 2)}),
    ("attention_fwd", HOPPER, "half", _short_tails({64: _mn(64, 64, 4, 2), 128: _mn(64, 64, 4, 2, 255)})),
    ("attention_fwd_tall", HOPPER, "half", _short_tails({64: _mn(128, 64, 4, 2)})),
    ("attention_fwd", AMD, "fp32", {128: _mn(32, 32, 4, 1)}),
    ("attention_fwd", AMD, "half", {64: _mn(64, 64, 4, 1), 128: _mn(64, 32, 4, 1)}),
    ("attention_bwd_q", NVIDIA, "fp32", {64: _mn(32, 32, 8, 2), 128: _mn(32, 16, 8, 2, 255)}),
    ("attention_bwd_q", "sm_80", "half", _short_tails({128: _mn(64, 32, 4, 2)})),
    ("attention_bwd_q", HOPPER, "half", _short_tails({64: _mn(64, 64, 4, 2), 128: _mn(64, 64, 4, 2, 255)})),
    ("attention_bwd_q", AMD, "fp32", {128: _mn(32, 32, 4, 1)}),
    ("attention_bwd_q", AMD, "half", {64: _mn(64, 64, 4, 1), 128: _mn(64, 32, 4, 1)}),
    ("attention_bwd_kv", "sm_80", "fp32", {128: _mn(32, 32, 8, 2)}),
    ("attention_bwd_kv", "sm_80", "half", _short_tails({64: _mn(64, 32, 4, 2), 128: _mn(64, 32, 8, 2)})),
    ("attention_bwd_kv", HOPPER, "fp32", {64: _mn(32, 32, 8, 2), 128: _mn(32, 16, 8, 2)}),
    ("attention_bwd_kv", HOPPER, "half", _short_tails({64: _mn(64, 64, 4, 2), 128: _mn(64, 64, 8, 2, 255)})),
    ("attention_bwd_kv", AMD, "fp32", {128: _mn(32, 32, 4, 1)}),
    ("attention_bwd_kv", AMD, "half", {128: _mn(64, 32, 4, 1)}),
    # the same of tokens that are turned, which takes more registers; heads of 65 to 127, padded to 128, take the most
    ("attention_fwd_rotary", "sm_80", "fp32", {64: _mn(32, 32, 8, 2, 255), 128: _mn(32, 32, 8, 2)}),
    ("attention_fwd_rotary", "sm_80", "half", {64: _mn(64, 64, 4, 2), 128: _mn(64, 32, 8, 2)}),
    ("attention_fwd_rotary", HOPPER, "fp32", {64: _mn(32, 32, 8, 2), 128: _mn(32, 16, 8, 2)}),
    ("attention_fwd_rotary", HOPPER, "half", _short_tails({64: _mn(64, 64, 4, 2), 128: _mn(64, 32, 4, 2)})),
    ("attention_fwd_rotary_tall", HOPPER, "half", _short_tails({64: _mn(128, 64, 4, 2), 128: _mn(128, 64, 8, 2, 255)})),
    ("attention_fwd_rotary_tallest", HOPPER, "half", _short_tails({64: _mn(256, 64, 8, 2)})),
    ("attention_fwd_rotary", AMD, "fp32", {128: _mn(32, 32, 4, 1)}),
    ("attention_fwd_rotary", AMD, "half", {64: _mn(64, 64, 4, 1), 128: _mn(64, 32, 4, 1)}),
    ("attention_bwd_q_rotary", NVIDIA, "fp32", {64: _mn(32, 32, 8, 2, 255), 128: _mn(32, 16, 8, 2, 255)}),
    ("attention_bwd_q_rotary", "sm_80", "half", {64: _mn(64, 32, 4, 2), 128: _mn(32, 32, 8, 2, 255)}),
    ("attention_bwd_q_rotary", "sm_90", "half", {128: _mn(64, 32, 4, 2, 255)}),
    (
        *("attention_bwd_q_rotary", "sm_100", "half"),
        {64: _mn(64, 32, 4, 2, 255), 127: _mn(64, 32, 8, 2, 255), 128: _mn(64, 32, 4, 2, 255)},
    ),
    ("attention_bwd_q_rotary_tall", "sm_90", "half", {64: _mn(128, 32, 4, 2), 128: _mn(128, 32, 8, 2, 255)}),
    ("attention_bwd_q_rotary_tall", "sm_100", "half", {64: _mn(128, 32, 4, 2)}),
    ("attention_bwd_q_rotary", AMD, "fp32", {64: _mn(32, 32, 4, 1), 128: _mn(32, 16, 4, 1)}),
    ("attention_bwd_q_rotary", AMD, "half", {64: _mn(64, 64, 4, 1), 128: _mn(64, 16, 4, 1)}),
    (
        *("attention_bwd_kv_rotary", NVIDIA, "fp32"),
        {64: _mn(32, 32, 8, 2), 127: _mn(16, 16, 8, 2, 255), 128: _mn(32, 16, 8, 2)},
    ),
    ("attention_bwd_kv_rotary", "sm_80", "half", {64: _mn(64, 16, 8, 2, 255), 128: _mn(32, 32, 8, 2, 255)}),
    (
        *("attention_bwd_kv_rotary", "sm_90", "half"),
        {64: _mn(64, 32, 4, 2), 127: _mn(32, 32, 8, 2, 255), 128: _mn(64, 16, 8, 2, 255)},
    ),
    ("attention_bwd_kv_rotary", "sm_100", "half", {64: _mn(64, 32, 4, 2), 128: _mn(64, 32, 8, 2, 255)}),
    ("attention_bwd_kv_rotary_tall", HOPPER, "half", {64: _mn(128, 32, 8, 2)}),
    ("attention_bwd_kv_rotary", AMD, "fp32", {64: _mn(32, 32, 4, 1), 128: _mn(32, 16, 4, 1)}),
    ("attention_bwd_kv_rotary", AMD, "half", {64: _mn(64, 32, 4, 1), 128: _mn(64, 16, 4, 1)}),
    # align; two blocks of sm_90's forward overlap one's matmul and the other's epilogue, one that holds its tokens
    # overlaps its own
    ("align_rows", ANY_ARCH, ANY_DTYPE, {ANY_WIDTH: _config(4, ROWS=16, BLOCK_C=64)}),
    (ALIGN, NVIDIA, "fp32", _mnc(64, 32, 32, 8, 2, 128)),
    (ALIGN, AMD, "fp32", _mnc(64, 32, 32, 8, 1)),
    (ALIGN, "sm_80", "half", _mnc(128, 128, 32, 8, 3)),
    ("align_fwd align_fwd_online", "sm_90", "half", _mnc(128, 128, 64, 4, 3)),
    ("align_bwd", "sm_90", "half", _mnc(128, 128, 64, 8, 3)),
    ("align_fwd_held", "sm_90", "half", {ANY_WIDTH: _mn(128, 64, 8, 3)}),
    (ALIGN, "sm_100", "half", _mnc(128, 64, 32, 8, 3)),
    (ALIGN, AMD, "half", _mnc(128, 128, 32, 8, 1)),
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
    for suffix, shorter in (("_tallest", "_tall"), ("_tall", "")):  # shapes that larger tiles would suit, without any
        if kernel.endswith(suffix):
            return config_of(kernel.removesuffix(suffix) + shorter, arch, dtype, width)
    raise ValueError(f"configs.TABLE has no row for {kernel} on {arch} in {dtype} at width {width}")


_arch: Arch | None = None


@contextmanager
def configured_for(arch: Arch) -> Iterator[None]:
    """Use the rows of `arch`, whatever device tensors are on, in the whole process."""
    global _arch
    before, _arch = _arch, arch
    try:
        yield
    finally:
        _arch = before


def arch_of(device: torch.device) -> Arch:
    """Name the architecture whose rows a device uses; CPU tensors (interpreter) use sm_80's."""
    return _arch or _arch_of(device)


@cache
def _arch_of(device: torch.device) -> Arch:
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")
