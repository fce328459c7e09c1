"""Executable specification of proportional attention."""

import torch
import torch.nn.functional as F
from torch import Tensor


def log_size(size: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of keys of these sizes [B, M]; minus infinity for 0."""
    return size.log().to(dtype)


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float, dropout_p: float = 0.0
) -> Tensor:
    """PyTorch's attention with log size as an additive mask. Contract: `alt_fast_kernels.proportional_attention`."""
    bias = None
    if size is not None:
        # In half precision log size would lose up to 2 % of a weight; only the CPU's attention takes an fp32 mask.
        keep = q.device.type == "cpu" and q.dtype in (torch.float16, torch.bfloat16)
        bias = log_size(size, torch.float32 if keep else q.dtype)[:, None, None, :]
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias, scale=scale, dropout_p=dropout_p
    )
    return out.transpose(1, 2).flatten(2)  # [B, N, H * D]
