"""Executable specification of the size-weighted merge."""

import torch
import torch.nn.functional as F
from torch import Tensor

from alt_fast_kernels.dispatch import without_autocast


def merge_reference(x: Tensor, size: Tensor, slot: Tensor, order: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Segment means of x [B, N, C] weighted by size. Contract: `alt_fast_kernels.merge`.

    Most tokens keep a slot of their own and pass through exactly. A slot that others join moves from its survivor y
    towards each of them: y + sum of (x - y) * share is the mean, and touches r rows only.
    """
    batch, num_tokens, _ = x.shape
    dtype = torch.promote_types(x.dtype, size.dtype)
    order = order.long()
    first, merged = order[:, :num_slots], order[:, num_slots:]
    target = slot.gather(1, merged).long()
    merged_size = size.gather(1, merged)
    new_size = size.gather(1, first).scatter_add(1, target, merged_size)
    total = new_size.gather(1, target)
    share = (merged_size / total.masked_fill(total == 0, 1)).unsqueeze(-1)  # of tokens of size 0 the survivor stays

    flat = x.flatten(0, 1)
    start = torch.arange(batch, device=x.device).unsqueeze(1) * num_tokens

    def rows(tokens: Tensor) -> Tensor:
        """x at tokens [B, n], as [B, n, C]; a table look-up, since that copies whole rows."""
        return F.embedding(start + tokens, flat).to(dtype)

    mixed = rows(first)
    step = (rows(merged) - rows(first.gather(1, target))) * share
    index = target.unsqueeze(-1).expand_as(step)
    if torch._C._are_functorch_transforms_active():  # vmap over sizes alone cannot write into tokens it does not map
        mixed = mixed.scatter_add(1, index, step)
    else:
        mixed.scatter_add_(1, index, step)
    return mixed.to(x.dtype), new_size


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension in fp32 (fp64 stays), the result in x's dtype."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    with without_autocast(x):
        return F.layer_norm(x.to(dtype), x.shape[-1:], weight.to(dtype), bias.to(dtype), eps).to(x.dtype)
