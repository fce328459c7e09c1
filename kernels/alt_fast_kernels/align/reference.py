"""Executable specification of entity alignment."""

import torch
from torch import Tensor

from alt_fast_kernels.dispatch import without_autocast

_LOW32 = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers (held in int64) whose output bits look independent: murmur3's finalizer."""
    x = x ^ (x >> 16)
    x = (x * 0x85EBCA6B) & _LOW32
    x = x ^ (x >> 13)
    x = (x * 0xC2B2AE35) & _LOW32
    return x ^ (x >> 16)


def gumbel_noise(seed: Tensor, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Gumbel(0, 1) samples [rows, columns] of dtype fp32 or fp64, a pure function of (seed, row, column)."""
    seed = seed.reshape(())
    key = _mix((seed & _LOW32) ^ _mix((seed >> 32) & _LOW32))
    row = _mix(torch.arange(rows, device=seed.device) ^ key)
    column = _mix(torch.arange(columns, device=seed.device) + 0x9E3779B9 & _LOW32)
    bits = ((row[:, None] ^ column[None, :]) * 0x85EBCA6B) & _LOW32  # both are mixed: one more round, high bits only
    bits = ((bits ^ (bits >> 15)) * 0xC2B2AE35) & _LOW32
    uniform = ((bits >> 9).to(dtype) + 0.5) * 2.0**-23  # exact in fp32, so never 0 or 1
    return -(-uniform.log()).log()


def align_reference(
    tokens: Tensor, entities: Tensor, tau: float, seed: Tensor | None, hard: bool = True
) -> tuple[Tensor, Tensor]:
    """Eq. 4 and 5 with the whole [M, K] assignment in memory; tokens [M, C], entities of their dtype.

    Contract: `alt_fast_kernels.align`.
    """
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    with without_autocast(tokens):
        x, s = tokens.to(dtype), entities.to(dtype)
        norm, length = (y.norm(dim=-1, keepdim=True).clamp_min(1e-12) for y in (x, s))
        logits = (x / (norm * tau)) @ s.T / length.T
        if seed is not None:
            logits = logits + gumbel_noise(seed, len(x), len(s), dtype)
        index = logits.argmax(dim=-1)
        if hard and not logits.requires_grad:  # inference needs no soft assignment
            return index, s[index].to(tokens.dtype)
        soft = logits.softmax(dim=-1) @ s
        aligned = s[index] + (soft - soft.detach()) if hard else soft
    return index, aligned.to(tokens.dtype)
