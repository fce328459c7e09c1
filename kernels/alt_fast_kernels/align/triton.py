"""Entity alignment that streams over the corpus: no [tokens, entities] matrix. Contract: `alt_fast_kernels.align`.

Choosing (inference and training) is a matmul with an argmax for its epilogue. Training adds the soft assignment: flash
attention of tokens over entities, with the noise of eq. 4 drawn anew, from its counters, in every pass.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from alt_fast_kernels.launch import Config, Launch, arch_of, padded

SPLITS = 8  # parts of the corpus searched side by side: enough programs for a whole GPU even when tokens are few


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
    of_row = _mix(row.to(tl.uint32) ^ key)
    of_column = _mix(column.to(tl.uint32) + tl.full([], 0x9E3779B9, tl.uint32))
    bits = _mix(_mix(of_row[:, None] ^ of_column[None, :]) ^ key)
    uniform = ((bits >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2 ** -23
    return -tl.log(-tl.log(uniform))


@triton.jit
def align_argmax_kernel(
    tokens, entities, inverse, seed, best, index,
    num_tokens, num_entities, width, per_split,
    HAS_NOISE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(num_tokens, BLOCK_M)
    split = tl.program_id(0) // tiles
    m = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = m[:, None].to(tl.int64) * width
    factor = tl.load(inverse + m, mask=m < num_tokens, other=0.0)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    who = tl.zeros([BLOCK_M], tl.int32) + split * per_split
    for n0 in range(split * per_split, tl.minimum((split + 1) * per_split, num_entities), BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        logits = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for c0 in range(0, width, BLOCK_C):
            c = c0 + tl.arange(0, BLOCK_C)
            x = tl.load(tokens + row + c[None, :], mask=(m[:, None] < num_tokens) & (c[None, :] < width), other=0.0)
            at = entities + n[None, :].to(tl.int64) * width + c[:, None]
            s = tl.load(at, mask=(n[None, :] < num_entities) & (c[:, None] < width), other=0.0)
            logits = tl.dot(x, s, logits, input_precision="ieee")
        logits = logits * factor[:, None]
        if HAS_NOISE:
            logits += _gumbel(seed, m, n)
        logits = tl.where(n[None, :] < num_entities, logits, float("-inf"))
        tile_top, tile_who = tl.max(logits, 1, return_indices=True)  # the first of equal maxima
        better = tile_top > top
        top = tl.where(better, tile_top, top)
        who = tl.where(better, n0 + tile_who, who)
    tl.store(best + split * num_tokens + m, top, mask=m < num_tokens)
    tl.store(index + split * num_tokens + m, who, mask=m < num_tokens)


@triton.jit
def align_soft_fwd_kernel(
    tokens, entities, inverse, length, seed, soft, lse,
    num_tokens, num_entities, width,
    HAS_NOISE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.arange(0, BLOCK_C)
    inside = (m[:, None] < num_tokens) & (c[None, :] < width)
    at = m[:, None].to(tl.int64) * width + c[None, :]
    x = tl.load(tokens + at, mask=inside, other=0.0)
    factor = tl.load(inverse + m, mask=m < num_tokens, other=0.0)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for n0 in range(0, num_entities, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        known = n < num_entities
        s = tl.load(entities + n[:, None].to(tl.int64) * width + c[None, :], mask=known[:, None] & (c[None, :] < width), other=0.0)
        logits = tl.dot(x, tl.trans(s), input_precision="ieee") * factor[:, None]
        if HAS_NOISE:
            logits += _gumbel(seed, m, n)
        logits = tl.where(known[None, :], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        weights = tl.exp(logits - new_top[:, None])
        fade = tl.exp(top - new_top)
        total = total * fade + tl.sum(weights, 1)
        weights *= tl.load(length + n, mask=known, other=0.0)[None, :]  # entities are stored as unit vectors
        mixed = tl.dot(weights.to(s.dtype), s, mixed * fade[:, None], input_precision="ieee")
        top = new_top
    tl.store(soft + at, (mixed / total[:, None]).to(soft.dtype.element_ty), mask=inside)
    tl.store(lse + m, top + tl.log(total), mask=m < num_tokens)


@triton.jit
def align_soft_bwd_kernel(
    tokens, entities, inverse, length, seed, soft, lse, grad_out, grad,
    num_tokens, num_entities, width, tau,
    HAS_NOISE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.arange(0, BLOCK_C)
    inside = (m[:, None] < num_tokens) & (c[None, :] < width)
    at = m[:, None].to(tl.int64) * width + c[None, :]
    x = tl.load(tokens + at, mask=inside, other=0.0)
    upstream = tl.load(grad_out + at, mask=inside, other=0.0)
    shift = tl.sum(upstream.to(tl.float32) * tl.load(soft + at, mask=inside, other=0.0).to(tl.float32), 1)
    factor = tl.load(inverse + m, mask=m < num_tokens, other=0.0)
    log_total = tl.load(lse + m, mask=m < num_tokens, other=float("inf"))
    direction = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)  # gradient of the unit token, times tau
    for n0 in range(0, num_entities, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        known = n < num_entities
        s = tl.load(entities + n[:, None].to(tl.int64) * width + c[None, :], mask=known[:, None] & (c[None, :] < width), other=0.0)
        logits = tl.dot(x, tl.trans(s), input_precision="ieee") * factor[:, None]
        if HAS_NOISE:
            logits += _gumbel(seed, m, n)
        weights = tl.where(known[None, :], tl.exp(logits - log_total[:, None]), 0.0)
        grad_weights = tl.dot(upstream, tl.trans(s), input_precision="ieee")
        grad_weights *= tl.load(length + n, mask=known, other=0.0)[None, :]
        grad_logits = weights * (grad_weights - shift[:, None])
        direction = tl.dot(grad_logits.to(s.dtype), s, direction, input_precision="ieee")
    # Through the normalisation: the part along the token does not change its cosine. factor = 1 / (norm * tau).
    unit = x.to(tl.float32) * factor[:, None] * tau
    along = tl.sum(direction * unit, 1)
    tl.store(grad + at, ((direction - unit * along[:, None]) * factor[:, None]).to(grad.dtype.element_ty), mask=inside)


def align_config(kernel: str, dtype: torch.dtype, width: int, arch: str) -> Config:
    """The launch configuration of "argmax" or "soft"; soft tiles hold whole rows of `width` channels."""
    if kernel == "argmax":
        if dtype == torch.float32:
            return Config(64, 64, 4, 1 if arch == "gfx942" else 2)
        return Config(128, 64 if arch == "gfx942" else 128, 8, 1 if arch == "gfx942" else 2)
    return Config(16, 16, 8 if width > 512 else 4, 1)


def _options(kernel: str, tokens: Tensor, block_c: int, seed: Tensor | None, arch: str | None) -> dict:
    config = align_config(kernel, tokens.dtype, tokens.shape[1], arch or arch_of(tokens.device))
    return {
        "HAS_NOISE": seed is not None,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_C": block_c,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""tokens [M, C], unit entities [K, C] of the same dtype, inverse [M] fp32 = 1 / (norm of token * tau), seed or None."""


def align_argmax_launch(inputs: Inputs, best: Tensor, index: Tensor, arch: str | None = None) -> Launch:
    """Writes the best logit and its entity in each part of the corpus: best [S, M] fp32, index [S, M] int32."""
    tokens, entities, inverse, seed = inputs
    options = _options("argmax", tokens, 32 if tokens.dtype == torch.float32 else 64, seed, arch)
    splits, num_tokens = best.shape
    per_split = triton.cdiv(triton.cdiv(len(entities), splits), options["BLOCK_N"]) * options["BLOCK_N"]
    args = (tokens, entities, inverse, tokens if seed is None else seed, best, index)
    shape = (num_tokens, *entities.shape, per_split)
    return Launch(align_argmax_kernel, splits * triton.cdiv(num_tokens, options["BLOCK_M"]), (*args, *shape), options)


def align_soft_fwd_launch(
    inputs: Inputs, length: Tensor, soft: Tensor, lse: Tensor, arch: str | None = None
) -> Launch:
    """length [K] fp32 norms of the entities. Writes the soft assignment [M, C] and lse [M] fp32."""
    tokens, entities, inverse, seed = inputs
    options = _options("soft", tokens, padded(tokens.shape[1]), seed, arch)
    args = (tokens, entities, inverse, length, tokens if seed is None else seed, soft, lse)
    grid = triton.cdiv(len(tokens), options["BLOCK_M"])
    return Launch(align_soft_fwd_kernel, grid, (*args, len(tokens), *entities.shape), options)


def align_soft_bwd_launch(
    inputs: Inputs, length: Tensor, tau: float, saved: tuple[Tensor, Tensor, Tensor], grad: Tensor, arch: str | None = None
) -> Launch:
    """saved: soft, lse, and the gradient of aligned [M, C]. Writes grad [M, C] of the tokens."""
    tokens, entities, inverse, seed = inputs
    options = _options("soft", tokens, padded(tokens.shape[1]), seed, arch)
    args = (tokens, entities, inverse, length, tokens if seed is None else seed, *saved, grad)
    grid = triton.cdiv(len(tokens), options["BLOCK_M"])
    return Launch(align_soft_bwd_kernel, grid, (*args, len(tokens), *entities.shape, tau), options)
