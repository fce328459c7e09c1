"""Entity alignment that streams over the corpus: no [tokens, entities] matrix. Contract: `alt_fast_kernels.align`.

All kernels are matmuls of tokens [M, C] and entities [K, C] with an epilogue: forward argmax and softmax's sum,
backward the weights of a chunk of the corpus. Logits are recomputed and the noise of eq. 4 drawn anew, from its
counters, in backward. All read

    tokens [M, C] and entities [K, C], contiguous, of one dtype, C whole blocks of channels; factor [M] fp32 =
    log2(e) / (norm * tau) of the tokens and columns [K] fp32 = 1 / norm of the entities, so that x s^T * factor *
    columns are logits in base 2. With noise columns are int64: 1 / norm in the lower half, in the upper what an entity
    puts into the hash; seed is one int64 number, and a token's row in the noise is its index modulo period. Behind the
    last column there are PADDING more, which count for nothing: a tile reads them without a mask.

The noise is never a logarithm twice: with u uniform and E = -log2 u, exp(logit + Gumbel) is exp(logit) / E but for a
factor, ln 2, that all have, and the best logit with noise is the largest such weight. Grids are flat: tiles of BLOCK_M
tokens lie side by side within a part of the corpus.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from alt_fast_kernels.configs import APPROXIMATES, HOLDS_TOKENS, Arch, arch_of, config_of
from alt_fast_kernels.launch import Launch, cdiv

SPLITS = 8  # parts of the corpus walked side by side: enough programs for a whole GPU even when tokens are few
HELD_WIDTHS = (64, 128, 256, 512)  # of tokens that registers can hold, in halves that are tiles
HELD_PROGRAMS = 1024  # beyond so many, which fill any GPU, no more parts: each would load these tokens once more
PADDING = 128  # entities that the widest tile has
CHUNK = 16 * PADDING  # entities whose weights are in memory at a time, in backward: whole tiles of any width
MAX_BOUND = 57.0  # of |logit| in base 2, below which exp2 of logit - bound is a normal number, with noise too


@triton.jit
def mix(x):
    """murmur3's finalizer on uint32."""
    x = x ^ (x >> 16)
    x = x * tl.full([], 0x85EBCA6B, tl.uint32)
    x = x ^ (x >> 13)
    x = x * tl.full([], 0xC2B2AE35, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def _rows(seed, row):
    """What the tokens put into the hash; see reference.py."""
    number = tl.load(seed)
    low, high = number.to(tl.uint32), (number >> 32).to(tl.uint32)
    return mix(row.to(tl.uint32) ^ mix(low ^ mix(high)))


@triton.jit
def _unpack(columns, HAS_NOISE: tl.constexpr):
    """1 / norm of entities, and what they put into the hash, which without noise nobody reads."""
    if HAS_NOISE:
        length, bits = columns.to(tl.int32).to(tl.float32, bitcast=True), (columns >> 32).to(tl.uint32)
    else:
        length, bits = columns, columns
    return length, bits


@triton.jit
def _reciprocal_exponential(row_bits, column_bits, APPROXIMATE: tl.constexpr):
    """exp of reference.py's Gumbel noise [rows, columns], times ln 2: 1 / E, E = -log2 u of its uniform numbers u.

    Relative error: 7e-7; APPROXIMATE, which is in PTX, 8e-6. Nothing else here is computed so often.
    """
    bits = row_bits[:, None] ^ column_bits[None, :]
    bits = bits * tl.full([], 0x85EBCA6B, tl.uint32)
    bits = bits ^ (bits >> 15)
    bits = bits * tl.full([], 0x3D4D51CB, tl.uint32) + tl.full([], 0xFFFFFFFF, tl.uint32)  # the reference's, inverted
    one_to_two = ((bits >> 9) + tl.full([], 0x3F800000, tl.uint32)).to(tl.float32, bitcast=True)
    rest = one_to_two - 0.999999940395355224609375  # 1 - 2 ** -24, so that this is 1 - u: exact, in (0, 1)
    if APPROXIMATE:
        # The logarithm is off by up to 2 ** -22 (PTX ISA, section 9.7.3): too much where u is nearly 1, as that of what
        # is chosen is. There a polynomial is right; elsewhere it is too near 0, and so is a logarithm of a little more.
        near = ((-0.4959 * rest - 0.7213475204444817) * rest - 1.4426950408889634) * rest
        far = tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [tl.fma(rest, -1.0000002384185791015625, 1.0000002384185791015625)],
            dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
        reciprocal = tl.inline_asm_elementwise(
            "neg.f32 $0, $1; rcp.approx.ftz.f32 $0, $0;", "=f,f", [tl.minimum(near, far)],
            dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        # u = 2 ** e * (1 + f) with 1 + f between sqrt(1/2) and sqrt(2), so that nothing cancels where u is nearly 1.
        # The polynomial is -log2(1 + f) / f fitted at Chebyshev's nodes.
        uniform = (1.0 - rest).to(tl.int32, bitcast=True)
        exponent = (uniform - 0x3F3504F3) >> 23
        f = (uniform - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
        q = 0.14275974035263062 * f - 0.23265257477760315
        q = q * f + 0.24927182495594025
        q = q * f - 0.2872888743877411
        q = q * f + 0.3602251708507538
        q = q * f - 0.48091670870780945
        q = q * f + 0.7213529348373413
        q = q * f - 1.4426950216293335
        root = tl.rsqrt(q * f - exponent.to(tl.float32))  # division would first scale, for any E
        reciprocal = root * root
    return reciprocal


@triton.jit
def _dot(
    x, s, m, n, num_tokens, num_entities, width,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Tile [BLOCK_M, BLOCK_N] of x s^T, x [num_tokens, width], s [num_entities, width]; fp32.

    Rows beyond the last repeat it, which costs no mask. width is a multiple of BLOCK_C.
    """
    tile = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    row = x + tl.minimum(m, num_tokens - 1)[:, None].to(tl.int64) * width
    column = s + tl.minimum(n, num_entities - 1)[None, :].to(tl.int64) * width
    for c0 in range(0, width, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        left = tl.load(row + c[None, :])
        right = tl.load(column + c[:, None])
        tile = tl.dot(left, right, tile, input_precision="ieee")
    return tile


@triton.jit
def _worst(BLOCK_M: tl.constexpr, HAS_NOISE: tl.constexpr):
    """Where `_better` begins: it compares logits or, with noise, the bits of weights, which are in the same order."""
    return tl.zeros([BLOCK_M], tl.int32) if HAS_NOISE else tl.full([BLOCK_M], float("-inf"), tl.float32)


@triton.jit
def _better(score, n0, best, who, BLOCK_N: tl.constexpr):
    """The best of a tile whose first entity is n0, and which it is, where it is better than best [BLOCK_M], of who."""
    tile_best = tl.max(score, 1)
    column_of_best = tl.min(tl.where(score == tile_best[:, None], tl.arange(0, BLOCK_N)[None, :], BLOCK_N - 1), 1)
    better = tile_best > best
    return tl.where(better, tile_best, best), tl.where(better, n0 + column_of_best, who)


@triton.jit(do_not_specialize=["num_tokens", "period"])
def align_fwd_kernel(
    # reads
    tokens, entities, factor, columns, seed,
    # writes
    best_out, index, lse_out,
    # extents, and the bound of the logits
    num_tokens, num_entities, width, period, per_split, bound,
    HAS_NOISE: tl.constexpr, APPROXIMATE: tl.constexpr, BOUNDED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Find each token's best entity and the sum of its softmax, in every part of the corpus.

    Writes best_out [splits, M] fp32, the largest logit with its noise; index [splits, M] int32, the first entity that
    has it; lse_out [splits, M] fp32, the log of the sum of exponentials. All in base 2, with noise less than they are
    by 0.53, -log2 of ln 2. bound: no logit without noise is larger; if BOUNDED, exp2(logit - bound) does not underflow
    and no running maximum is needed.
    Grid: splits * cdiv(M, BLOCK_M), no split empty. A program owns BLOCK_M tokens and a part's per_split entities.
    """
    tiles = tl.cdiv(num_tokens, BLOCK_M)
    split = tl.program_id(0) // tiles
    m = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    scale = tl.load(factor + m, mask=m < num_tokens, other=0.0)
    if HAS_NOISE:
        row_bits = _rows(seed, m % period)
    shift = tl.full([BLOCK_M], float("-inf"), tl.float32)  # weights are relative to 2 ** shift
    best = _worst(BLOCK_M, HAS_NOISE)
    total = tl.zeros([BLOCK_M], tl.float32)
    who = tl.zeros([BLOCK_M], tl.int32)
    first = split * per_split
    for n0 in range(first, tl.minimum(first + per_split, num_entities), BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        column, bits = _unpack(tl.load(columns + n), HAS_NOISE)
        ceiling = tl.where(n < num_entities, -bound if BOUNDED else 0.0, float("-inf"))
        dot = _dot(tokens, entities, m, n, num_tokens, num_entities, width, BLOCK_M, BLOCK_N, BLOCK_C)
        score = dot * column[None, :] * scale[:, None] + ceiling[None, :]
        if BOUNDED:
            weight = tl.exp2(score)
        else:
            new_shift = tl.maximum(shift, tl.max(score, 1))
            rescale = tl.exp2(shift - new_shift)
            total *= rescale
            if HAS_NOISE:
                best = (best.to(tl.float32, bitcast=True) * rescale).to(tl.int32, bitcast=True)
            weight = tl.exp2(score - new_shift[:, None])
            shift = new_shift
        if HAS_NOISE:
            weight *= _reciprocal_exponential(row_bits, bits, APPROXIMATE)
            score = weight.to(tl.int32, bitcast=True)
        total += tl.sum(weight, 1)
        best, who = _better(score, n0, best, who, BLOCK_N)
    if BOUNDED:
        shift = tl.full([BLOCK_M], 0.0, tl.float32) + bound
    if HAS_NOISE:
        best = tl.log2(best.to(tl.float32, bitcast=True)) + shift
    elif BOUNDED:
        best += bound
    at = split.to(tl.int64) * num_tokens + m
    tl.store(best_out + at, best, mask=m < num_tokens)
    tl.store(index + at, who, mask=m < num_tokens)
    tl.store(lse_out + at, tl.log2(total) + shift, mask=m < num_tokens)


@triton.jit
def _half(entities, n, num_entities, which, HALF: tl.constexpr):
    """Load one half of the channels of entities n, transposed: [HALF, BLOCK_N]. Those beyond the last repeat it."""
    column = entities + tl.minimum(n, num_entities - 1)[None, :].to(tl.int64) * (2 * HALF)
    return tl.load(column + which * HALF + tl.arange(0, HALF)[:, None])


@triton.jit(do_not_specialize=["num_tokens", "period"])
def align_fwd_held_kernel(
    # reads
    tokens, entities, factor, columns, seed,
    # writes
    best_out, index, lse_out,
    # extents, and the bound of the logits
    num_tokens, num_entities, period, per_split, bound,
    HAS_NOISE: tl.constexpr, APPROXIMATE: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Do what `align_fwd_kernel` does, BOUNDED, on the same grid, with its tokens held in registers.

    A tile's product is summed over two halves of the channels. While a tile is counted in, the first half of the next
    product is under way, in the registers of sums that have just become logits. In any other order the compiler waits
    for it first, or copies sums.
    """
    half: tl.constexpr = WIDTH // 2
    tiles = tl.cdiv(num_tokens, BLOCK_M)
    split = tl.program_id(0) // tiles
    m = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    scale = tl.load(factor + m, mask=m < num_tokens, other=0.0)
    row = tokens + tl.minimum(m, num_tokens - 1)[:, None].to(tl.int64) * WIDTH + tl.arange(0, half)[None, :]
    inside = (m < num_tokens)[:, None]
    # Computed, which changes no result: what is only loaded would be kept in shared memory.
    x0 = tl.where(inside, tl.load(row), 0.0)
    x1 = tl.where(inside, tl.load(row + half), 0.0)
    if HAS_NOISE:
        row_bits = _rows(seed, m % period)
    best = _worst(BLOCK_M, HAS_NOISE)
    who = tl.zeros([BLOCK_M], tl.int32)
    total = tl.zeros([BLOCK_M], tl.float32)
    first = split * per_split
    last = first + (tl.cdiv(tl.minimum(per_split, num_entities - first), BLOCK_N) - 1) * BLOCK_N  # the last tile
    begun = tl.dot(x0, _half(entities, first + tl.arange(0, BLOCK_N), num_entities, 0, half))
    for n0 in range(first, last, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        dot = tl.dot(x1, _half(entities, n, num_entities, 1, half), begun)
        column, bits = _unpack(tl.load(columns + n0 + tl.arange(0, BLOCK_N)), HAS_NOISE)  # shorter than columns + n
        score = dot * column[None, :] * scale[:, None] - bound
        begun = tl.dot(x0, _half(entities, n + BLOCK_N, num_entities, 0, half))
        weight = tl.exp2(score)
        if HAS_NOISE:
            weight *= _reciprocal_exponential(row_bits, bits, APPROXIMATE)
            score = weight.to(tl.int32, bitcast=True)
        total += tl.sum(weight, 1)
        best, who = _better(score, n0, best, who, BLOCK_N)
    n = last + tl.arange(0, BLOCK_N)
    dot = tl.dot(x1, _half(entities, n, num_entities, 1, half), begun)
    column, bits = _unpack(tl.load(columns + n), HAS_NOISE)
    score = dot * column[None, :] * scale[:, None] + tl.where(n < num_entities, -bound, float("-inf"))[None, :]
    weight = tl.exp2(score)
    if HAS_NOISE:
        weight *= _reciprocal_exponential(row_bits, bits, APPROXIMATE)
        score = weight.to(tl.int32, bitcast=True)
    total += tl.sum(weight, 1)
    best, who = _better(score, last, best, who, BLOCK_N)
    if HAS_NOISE:
        best = tl.log2(best.to(tl.float32, bitcast=True))
    at = split.to(tl.int64) * num_tokens + m
    tl.store(best_out + at, best + bound, mask=m < num_tokens)
    tl.store(index + at, who, mask=m < num_tokens)
    tl.store(lse_out + at, tl.log2(total) + bound, mask=m < num_tokens)


@triton.jit(do_not_specialize=["num_tokens", "period"])
def align_bwd_kernel(
    # reads
    tokens, entities, factor, columns, seed, lse, grad_out, pivot,
    # writes
    weights, sums,
    # extents
    num_tokens, num_entities, width, period, first, chunk,
    HAS_NOISE: tl.constexpr, APPROXIMATE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute softmax's weights w of `chunk` entities, those from `first` on, and w times their gradient g.

    Reads lse [M] fp32, the log of the sum of exponentials in base 2; grad_out [M, C] in the tokens' dtype, the gradient
    of the aligned tokens, so that g = grad_out s^T; pivot [M] fp32, which is subtracted from g.
    Writes weights [2, M, chunk] in its own dtype, w * (g - pivot) and w; sums [2, cdiv(chunk, BLOCK_N), M] fp32, each
    tile's sum of both.
    Grid: cdiv(M, BLOCK_M) * cdiv(chunk, BLOCK_N). A program owns one tile.
    """
    tiles = tl.cdiv(chunk, BLOCK_N)
    tile = tl.program_id(0) % tiles
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    m = (tl.program_id(0) // tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = first + column
    scale = tl.load(factor + m, mask=m < num_tokens, other=0.0)
    shift = tl.load(lse + m, mask=m < num_tokens, other=0.0)
    middle = tl.load(pivot + m, mask=m < num_tokens, other=0.0)
    length, bits = _unpack(tl.load(columns + n), HAS_NOISE)
    ceiling = tl.where(n < num_entities, 0.0, float("-inf"))
    dot = _dot(tokens, entities, m, n, num_tokens, num_entities, width, BLOCK_M, BLOCK_N, BLOCK_C)
    weight = tl.exp2(dot * length[None, :] * scale[:, None] + (ceiling[None, :] - shift[:, None]))
    if HAS_NOISE:
        weight *= _reciprocal_exponential(_rows(seed, m % period), bits, APPROXIMATE)
    at = m[:, None].to(tl.int64) * chunk + column[None, :]
    inside = (m[:, None] < num_tokens) & (column[None, :] < chunk)
    plane = num_tokens.to(tl.int64) * chunk
    part = sums + tile.to(tl.int64) * num_tokens + m
    # Stored at once: what noise needs would be kept until then.
    tl.store(weights + plane + at, weight.to(weights.dtype.element_ty), mask=inside)
    tl.store(part + tiles.to(tl.int64) * num_tokens, tl.sum(weight, 1), mask=m < num_tokens)
    grad = _dot(grad_out, entities, m, n, num_tokens, num_entities, width, BLOCK_M, BLOCK_N, BLOCK_C)
    grad = weight * (grad - middle[:, None])
    tl.store(weights + at, grad.to(weights.dtype.element_ty), mask=inside)
    tl.store(part, tl.sum(grad, 1), mask=m < num_tokens)


class Inputs(NamedTuple):
    """What all kernels read, as the module says; seed is None for no noise."""

    tokens: Tensor
    entities: Tensor
    factor: Tensor
    columns: Tensor
    seed: Tensor | None
    period: int

    @property
    def head(self) -> tuple[Tensor, ...]:
        """The first arguments of every kernel; tokens stand in for a seed that is not."""
        return *self[:4], self.tokens if self.seed is None else self.seed

    @property
    def inverse(self) -> Tensor:
        """1 / norm of the entities, [K] fp32."""
        columns = self.columns[: len(self.entities)]
        return columns if self.seed is None else columns.view(torch.float32)[::2]

    @property
    def extents(self) -> tuple[int, int, int, int]:
        """M, K, C and the period of the noise."""
        return len(self.tokens), *self.entities.shape, self.period

    def options(self, kernel: str) -> dict[str, Any]:
        """Constexpr parameters and compile options of a kernel of configs.TABLE."""
        return _options(kernel, self.seed is not None, arch_of(self.tokens.device), self.tokens.dtype)


@cache
def _options(kernel: str, noise: bool, arch: Arch, dtype: torch.dtype) -> dict[str, Any]:
    approximate = noise and (arch, dtype.itemsize) in APPROXIMATES
    return {"HAS_NOISE": noise, "APPROXIMATE": approximate, **config_of(kernel, arch, dtype)}


class Saved(NamedTuple):
    """What backward reads besides: lse [M] fp32 (see `align_op`), grad_out [M, C] contiguous, pivot [M] fp32."""

    lse: Tensor
    grad_out: Tensor
    pivot: Tensor


@cache
def _forward(noise: bool, bounded: bool, arch: Arch, dtype: torch.dtype, width: int) -> tuple[Any, dict[str, Any]]:
    """Return the forward kernel, and its constexpr parameters and compile options."""
    if arch in HOLDS_TOKENS and dtype.itemsize == 2 and bounded and width in HELD_WIDTHS:
        return align_fwd_held_kernel, {"WIDTH": width, **_options("align_fwd_held", noise, arch, dtype)}
    options = _options("align_fwd" if bounded else "align_fwd_online", noise, arch, dtype)
    return align_fwd_kernel, {"BOUNDED": bounded, **options}


def align_fwd_launch(inputs: Inputs, bound: float) -> tuple[Launch, tuple[Tensor, Tensor, Tensor]]:
    """Return what writes best logit, its entity (int32) and log of the sum of exponentials, and these three.

    They are [parts of the corpus, M], no part empty, of logits as the kernel says. bound: no logit, without noise and
    in base 2, is larger.
    """
    tokens, noise, (num_tokens, num_entities, width, period) = inputs.tokens, inputs.seed is not None, inputs.extents
    kernel, options = _forward(noise, bound <= MAX_BOUND, arch_of(tokens.device), tokens.dtype, width)
    held = kernel is align_fwd_held_kernel
    tiles, most = cdiv(num_tokens, options["BLOCK_M"]), SPLITS
    if held:
        most = min(SPLITS, max(1, HELD_PROGRAMS // max(1, tiles)))
    per_split = cdiv(num_entities, most * options["BLOCK_N"]) * options["BLOCK_N"]
    splits = cdiv(num_entities, per_split)
    best, lse = inputs.factor.new_empty(2, splits, num_tokens)
    index = torch.empty_like(best, dtype=torch.int32)
    extents = (num_tokens, num_entities, period) if held else inputs.extents
    args = (*inputs.head, best, index, lse, *extents, per_split, bound)
    return Launch(kernel, splits * tiles, args, options), (best, index, lse)


def sum_tiles(inputs: Inputs, chunk: int) -> int:
    """Return how many partial sums the backward kernel writes for a chunk of entities."""
    return cdiv(chunk, inputs.options("align_bwd")["BLOCK_N"])


def align_bwd_launch(inputs: Inputs, saved: Saved, first: int, weights: Tensor, sums: Tensor) -> Launch:
    """Write the weights [2, M, chunk] of the entities from `first` on, and sums [2, `sum_tiles`, M]."""
    options = inputs.options("align_bwd")
    _, num_tokens, chunk = weights.shape
    grid = cdiv(num_tokens, options["BLOCK_M"]) * sums.shape[1]
    return Launch(align_bwd_kernel, grid, (*inputs.head, *saved, weights, sums, *inputs.extents, first, chunk), options)
