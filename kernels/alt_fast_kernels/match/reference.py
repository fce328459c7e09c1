"""Executable specification of bipartite soft matching."""

import torch
from torch import Tensor


def match_reference(key: Tensor, r: int, protected: int) -> Tensor:
    """Slot of every token, [B, N] int32; r must already be clipped. Contract: `alt_fast_kernels.match`."""
    batch, num_tokens = key.shape[:2]
    if r == 0:
        return torch.arange(num_tokens, dtype=torch.int32, device=key.device).expand(batch, -1)

    metric = key.to(torch.promote_types(key.dtype, torch.float32))
    if metric.ndim == 4:
        metric = metric.mean(2)
    metric = metric / metric.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    scores = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)  # [B, A, B'], even tokens against odd ones
    protected_a, protected_b = (protected + 1) // 2, protected // 2
    scores[:, :protected_a] = -torch.inf
    scores[:, :, :protected_b] = -torch.inf

    best, partner = scores.max(dim=-1)  # the first of equal maxima
    order = best.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=key.device).expand_as(order))
    merged = rank < r
    survivors = order.shape[1] - r

    if protected:
        slot_a = (~merged).cumsum(1) - 1 + protected_b
        slot_a[:, :protected_a] = 2 * torch.arange(protected_a, device=key.device)
    else:
        slot_a = rank - r
    slot_b = survivors + torch.arange(scores.shape[2], device=key.device)
    slot_b[:protected_b] = 2 * torch.arange(protected_b, device=key.device) + 1
    slot_a = torch.where(merged, slot_b[partner], slot_a)

    slot = torch.empty(batch, num_tokens, dtype=torch.int32, device=key.device)
    slot[:, ::2] = slot_a
    slot[:, 1::2] = slot_b
    return slot
