"""Attention in which a key of size s weighs as much as s equal keys (ToMe, equation 1), in plain PyTorch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from problems.checks import inaccuracy, malformed

Inputs = tuple[Tensor, Tensor]
"""qkv [B, N, 3, H, D], the packed projection; size [B, N] fp32."""


def generate_input(
    batch: int, num_tokens: int, heads: int, head_dim: int, dtype: str, seed: int, device: torch.device | str = "cpu"
) -> Inputs:
    """Draw a projection, and sizes of 1 to 8."""
    generator = torch.Generator(device).manual_seed(seed)
    qkv = torch.randn(batch, num_tokens, 3, heads, head_dim, generator=generator, device=device)
    size = torch.randint(1, 9, (batch, num_tokens), generator=generator, device=device)
    return qkv.to(getattr(torch, dtype)), size.float()


def ref_kernel(inputs: Inputs) -> Tensor:
    """Attend, [B, N, H * D]: PyTorch's attention with log size as a mask, which a GPU takes in qkv's dtype only."""
    qkv, size = inputs
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    mask = size.log().to(qkv.dtype)[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def check_implementation(inputs: Inputs, output: Any) -> str | None:
    """Say why output is not softmax(q k^T / sqrt(D) + log size) v."""
    at_precision = ref_kernel(inputs)
    qkv, size = inputs
    return malformed(output, {"out": at_precision}) or inaccuracy(
        "out", output, at_precision, ref_kernel((qkv.double(), size.double()))
    )
