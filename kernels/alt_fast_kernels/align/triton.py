"""Entity alignment that streams over the corpus: no [tokens, entities] matrix. Contract: `alt_fast_kernels.align`.

Every kernel is a matmul of tokens [M, C] and entities [K, C] with an epilogue: argmax and softmax's maximum and sum
forward; backward first the sums over entities, then the gradient of the logits, a chunk of the corpus at a time. Logits
are recomputed and the noise of eq. 4 drawn anew, from its counters, in every pass. All of them read

    tokens [M, C], and entities [K, C] as unit vectors, contiguous and of one dtype; factor [M] fp32 = 1 / (norm * tau);
    seed, one int64 number (only if HAS_NOISE).

Grids are flat: tiles of BLOCK_M tokens lie side by side within a part of the corpus.
"""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from alt_fast_kernels.configs import Arch, arch_of, config_of
from alt_fast_kernels.launch import Launch

SPLITS = 8  # parts of the corpus walked side by side: enough programs for a whole GPU even when tokens are few
CHUNK = 1024  # entities whose logits' gradient is in memory at a time


@triton.jit
def _mix(x):
    """murmur3's finalizer on uint32."""
    x = x ^ (x >> 16)
    x = x * tl.full([], 0x85EBCA6B, tl.uint32)
    x = x ^ (x >> 13)
    x = x * tl.full([], 0xC2B2AE35, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def _gumbel(seed, row, column):
    """Gumbel(0, 1) noise [rows, columns], the numbers of reference.py's gumbel_noise."""
    number = tl.load(seed)
    low, high = number.to(tl.uint32), (number >> 32).to(tl.uint32)
    key = _mix(low ^ _mix(high))
    row_bits = _mix(row.to(tl.uint32) ^ key)
    column_bits = _mix(column.to(tl.uint32) + tl.full([], 0x9E3779B9, tl.uint32))
    bits = _mix(_mix(row_bits[:, None] ^ column_bits[None, :]) ^ key)
    uniform = ((bits >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2 ** -23
    return -tl.log(-tl.log(uniform))


@triton.jit
def _dot(
    x, s, m, n, num_tokens, num_entities, width, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Tile [BLOCK_M, BLOCK_N] of x s^T, x [num_tokens, width], s [num_entities, width]; fp32."""
    tile = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    row, column = m[:, None].to(tl.int64) * width, n[None, :].to(tl.int64) * width
    for c0 in range(0, width, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        left = tl.load(x + row + c[None, :], mask=(m[:, None] < num_tokens) & (c[None, :] < width), other=0.0)
        right = tl.load(s + column + c[:, None], mask=(n[None, :] < num_entities) & (c[:, None] < width), other=0.0)
        tile = tl.dot(left, right, tile, input_precision="ieee")
    return tile


@triton.jit
def _noisy(cosines, factor, seed, m, n, num_entities, HAS_NOISE: tl.constexpr):
    """Logits of eq. 4 from x s^T; minus infinity beyond the last entity."""
    logits = cosines * factor[:, None]
    if HAS_NOISE:
        logits += _gumbel(seed, m, n)
    return tl.where(n[None, :] < num_entities, logits, float("-inf"))


@triton.jit
def _owned(num_tokens, BLOCK_M: tl.constexpr):
    """The part of the corpus and the tokens [BLOCK_M] that this program owns."""
    tiles = tl.cdiv(num_tokens, BLOCK_M)
    return tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)


@triton.jit
def align_fwd_kernel(
    # reads
    tokens, entities, factor, seed,
    # writes
    best, index, total_out,
    # extents
    num_tokens, num_entities, width, per_split,
    HAS_NOISE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Find each token's best entity and the sum of its softmax, in every part of the corpus.

    Writes best [SPLITS, M] fp32, the largest logit; index [SPLITS, M] int32, the first entity that has it; total_out
    [SPLITS, M] fp32, the sum of exp(logit - best). A part without entities leaves minus infinity, 0 and 0.
    Grid: SPLITS * cdiv(M, BLOCK_M). A program owns BLOCK_M tokens and the per_split entities of one part.
    """
    split, m = _owned(num_tokens, BLOCK_M)
    scale = tl.load(factor + m, mask=m < num_tokens, other=0.0)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    who = tl.zeros([BLOCK_M], tl.int32)
    first = split * per_split
    for n0 in range(first, tl.minimum(first + per_split, num_entities), BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        cosines = _dot(tokens, entities, m, n, num_tokens, num_entities, width, BLOCK_M, BLOCK_N, BLOCK_C)
        logits = _noisy(cosines, scale, seed, m, n, num_entities, HAS_NOISE)
        tile_top, tile_who = tl.max(logits, 1, return_indices=True)  # the first of equal maxima
        new_top = tl.maximum(top, tile_top)
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(logits - new_top[:, None]), 1)
        who = tl.where(tile_top > top, n0 + tile_who, who)
        top = new_top
    at = split.to(tl.int64) * num_tokens + m
    tl.store(best + at, top, mask=m < num_tokens)
    tl.store(index + at, who, mask=m < num_tokens)
    tl.store(total_out + at, total, mask=m < num_tokens)


@triton.jit
def align_bwd_sum_kernel(
    # reads
    tokens, entities, factor, seed, length, stats, grad_out,
    # writes
    delta,
    # extents
    num_tokens, num_entities, width, per_split,
    HAS_NOISE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sum, over every part of the corpus, the gradient of each entity's weight times that weight.

    Reads length [K] fp32, the entities' norms; stats [2, M] fp32, each token's largest logit and 1 / sum of
    exp(logit - largest); grad_out [M, C] in the tokens' dtype, the gradient of the aligned tokens.
    Writes delta [SPLITS, M] fp32; summed over the parts it is what softmax's gradient subtracts.
    Grid: SPLITS * cdiv(M, BLOCK_M). A program owns BLOCK_M tokens and the per_split entities of one part.
    """
    split, m = _owned(num_tokens, BLOCK_M)
    scale = tl.load(factor + m, mask=m < num_tokens, other=0.0)
    top = tl.load(stats + m, mask=m < num_tokens, other=0.0)
    inverse_total = tl.load(stats + num_tokens + m, mask=m < num_tokens, other=0.0)
    total = tl.zeros([BLOCK_M], tl.float32)
    first = split * per_split
    for n0 in range(first, tl.minimum(first + per_split, num_entities), BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        cosines = _dot(tokens, entities, m, n, num_tokens, num_entities, width, BLOCK_M, BLOCK_N, BLOCK_C)
        weights = tl.exp(_noisy(cosines, scale, seed, m, n, num_entities, HAS_NOISE) - top[:, None])
        grad = _dot(grad_out, entities, m, n, num_tokens, num_entities, width, BLOCK_M, BLOCK_N, BLOCK_C)
        grad *= tl.load(length + n, mask=n < num_entities, other=0.0)[None, :]  # entities are stored as unit vectors
        total += tl.sum(weights * grad, 1)
    tl.store(delta + split.to(tl.int64) * num_tokens + m, total * inverse_total, mask=m < num_tokens)


@triton.jit
def align_bwd_logits_kernel(
    # reads
    tokens, entities, factor, seed, length, stats, grad_out, delta,
    # writes
    grad_logits,
    # extents
    num_tokens, num_entities, width, first, chunk,
    HAS_NOISE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of the logits of `chunk` entities, those from `first` on.

    Reads what `align_bwd_sum_kernel` reads, and delta [M] fp32, summed over the parts.
    Writes grad_logits [M, chunk] in its own dtype.
    Grid: cdiv(M, BLOCK_M) * cdiv(chunk, BLOCK_N). A program owns one tile of the result.
    """
    tiles = tl.cdiv(chunk, BLOCK_N)
    column = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = (tl.program_id(0) // tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = first + column
    scale = tl.load(factor + m, mask=m < num_tokens, other=0.0)
    top = tl.load(stats + m, mask=m < num_tokens, other=0.0)
    inverse_total = tl.load(stats + num_tokens + m, mask=m < num_tokens, other=0.0)
    shift = tl.load(delta + m, mask=m < num_tokens, other=0.0)
    cosines = _dot(tokens, entities, m, n, num_tokens, num_entities, width, BLOCK_M, BLOCK_N, BLOCK_C)
    weights = (
        tl.exp(_noisy(cosines, scale, seed, m, n, num_entities, HAS_NOISE) - top[:, None]) * inverse_total[:, None]
    )
    grad = _dot(grad_out, entities, m, n, num_tokens, num_entities, width, BLOCK_M, BLOCK_N, BLOCK_C)
    grad *= tl.load(length + n, mask=n < num_entities, other=0.0)[None, :]
    grad = weights * (grad - shift[:, None])
    at = m[:, None].to(tl.int64) * chunk + column[None, :]
    inside = (m[:, None] < num_tokens) & (column[None, :] < chunk)
    tl.store(grad_logits + at, grad.to(grad_logits.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Inputs:
    """What every kernel reads.

    tokens [M, C], and entities [K, C] as unit vectors, contiguous and of one dtype; factor [M] fp32 = 1 / (norm * tau);
    length [K] fp32, the entities' norms, which only backward reads; seed, one int64 number, or None for no noise.
    """

    tokens: Tensor
    entities: Tensor
    factor: Tensor
    length: Tensor
    seed: Tensor | None

    @property
    def head(self) -> tuple[Tensor, ...]:
        """The first arguments of every kernel; tokens stand in for a seed that is not read."""
        return self.tokens, self.entities, self.factor, self.tokens if self.seed is None else self.seed

    @property
    def shape(self) -> tuple[int, int, int]:
        """M, K, C."""
        num_entities, width = self.entities.shape
        return len(self.tokens), num_entities, width

    def options(self, arch: Arch | None) -> dict[str, Any]:
        """Constexpr parameters and compile options of all three kernels."""
        noise = self.seed is not None
        kernel = "align_noisy" if noise else "align"
        return {"HAS_NOISE": noise, **config_of(kernel, arch or arch_of(self.tokens.device), self.tokens.dtype)}


@dataclass(frozen=True)
class Saved:
    """What the backward kernels read besides: stats [2, M] fp32 (see `align_op`), grad_out [M, C] contiguous."""

    stats: Tensor
    grad_out: Tensor


def _split_launch(kernel: Any, inputs: Inputs, args: tuple[Tensor, ...], arch: Arch | None) -> Launch:
    options = inputs.options(arch)
    per_split = triton.cdiv(triton.cdiv(len(inputs.entities), SPLITS), options["BLOCK_N"]) * options["BLOCK_N"]
    grid = SPLITS * triton.cdiv(len(inputs.tokens), options["BLOCK_M"])
    return Launch(kernel, grid, (*inputs.head, *args, *inputs.shape, per_split), options)


def align_fwd_launch(inputs: Inputs, best: Tensor, index: Tensor, total: Tensor, arch: Arch | None = None) -> Launch:
    """Write each part's best logit, its entity (int32) and sum of exp(logit - best), all [SPLITS, M]."""
    return _split_launch(align_fwd_kernel, inputs, (best, index, total), arch)


def align_bwd_sum_launch(inputs: Inputs, saved: Saved, delta: Tensor, arch: Arch | None = None) -> Launch:
    """Write delta [SPLITS, M] fp32: the weights' mean gradient, by part."""
    return _split_launch(align_bwd_sum_kernel, inputs, (inputs.length, saved.stats, saved.grad_out, delta), arch)


def align_bwd_logits_launch(
    inputs: Inputs, saved: Saved, delta: Tensor, first: int, grad_logits: Tensor, arch: Arch | None = None
) -> Launch:
    """Write the gradient of the logits from entity `first` on, [M, chunk]. delta: [M] fp32, summed over the parts."""
    options = inputs.options(arch)
    num_tokens, chunk = grad_logits.shape
    grid = triton.cdiv(num_tokens, options["BLOCK_M"]) * triton.cdiv(chunk, options["BLOCK_N"])
    read = (*inputs.head, inputs.length, saved.stats, saved.grad_out, delta)
    return Launch(align_bwd_logits_kernel, grid, (*read, grad_logits, *inputs.shape, first, chunk), options)
