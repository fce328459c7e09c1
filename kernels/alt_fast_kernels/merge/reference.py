"""Executable specification of the size-weighted merge."""

import torch
import torch.nn.functional as F
from torch import Tensor


def merge_reference(x: Tensor, size: Tensor, slot: Tensor, order: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Segment means of x [B, N, C] weighted by size. Contract: `alt_fast_kernels.merge`.

    Most tokens keep a slot of their own: those are gathered, and only the merged ones added.
    """
    order = order.long()
    first, merged = order[:, :num_slots], order[:, num_slots:]
    target = slot.gather(1, merged).long()
    new_size = size.gather(1, first).scatter_add(1, target, size.gather(1, merged))
    # Each token's share of its slot comes first, so that a token that merges with nothing passes through exactly.
    kept_share = size.gather(1, first) / new_size
    merged_share = size.gather(1, merged) / new_size.gather(1, target)

    def rows(index: Tensor) -> Tensor:
        return index.unsqueeze(-1).expand(-1, -1, x.shape[2])

    mixed = x.gather(1, rows(first)) * kept_share.unsqueeze(-1)  # in fp32 at least, as sizes are
    mixed = mixed.scatter_add(1, rows(target), x.gather(1, rows(merged)) * merged_share.unsqueeze(-1))
    return mixed.to(x.dtype), new_size


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension in fp32 (fp64 stays), the result in x's dtype."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x.to(dtype), x.shape[-1:], weight.to(dtype), bias.to(dtype), eps).to(x.dtype)
