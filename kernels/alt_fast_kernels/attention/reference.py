"""Executable specification of proportional attention."""

import torch.nn.functional as F
from torch import Tensor


def attention_reference(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float | None) -> Tensor:
    """PyTorch's attention with log size as an additive mask. Contract: `alt_fast_kernels.proportional_attention`."""
    bias = None if size is None else size.log().to(q.dtype)[:, None, None, :]
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias, scale=scale
    )
    return out.transpose(1, 2).flatten(2)  # [B, N, H * D]
