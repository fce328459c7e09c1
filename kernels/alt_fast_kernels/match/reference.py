"""Executable specification of bipartite soft matching."""

import torch
from torch import Tensor

from alt_fast_kernels.checks import may_read_values
from alt_fast_kernels.match.plan import even_and_odd


def match_reference(key: Tensor, r: int, protected: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return slot, order and start of a plan for key [B, N, H, D], 0 < r, clipped.

    Contract: `alt_fast_kernels.match`.
    """
    batch, num_tokens = key.shape[:2]
    first_even, first_odd, num_even, num_odd = even_and_odd(num_tokens, protected)
    with torch.autocast(key.device.type, enabled=False):
        mean = key.to(torch.promote_types(key.dtype, torch.float32)).mean(2)
        norm = mean.norm(dim=-1, keepdim=True)
        metric = mean / norm.clamp_min(1e-12)
        scores = metric[:, first_even::2] @ metric[:, first_odd::2].transpose(1, 2)  # [B, num_even, num_odd]
    if may_read_values(key):
        if not bool(norm.isfinite().all()):
            raise ValueError("key must be finite, got NaN, infinity or a norm beyond fp32")
    else:
        scores = scores.masked_fill(scores.isnan(), -2.0)  # below every cosine

    best, partner = scores.max(dim=-1)  # the first of equal maxima
    if torch.onnx.is_in_onnx_export():  # ONNX has no stable sort, but its TopK puts the lower index first
        by_rank = best.topk(best.shape[1], dim=-1).indices
    else:
        by_rank = best.argsort(dim=-1, descending=True, stable=True)
    merged, kept = by_rank[:, :r], by_rank[:, r:]
    if protected:
        kept = kept.sort(dim=-1).values
    code = (partner.gather(1, merged) * num_even + merged).sort(dim=-1).values  # by partner, then by index
    partner, merged = code // num_even, code % num_even

    num_slots = num_tokens - r
    tokens = torch.arange(num_tokens, device=key.device).expand(batch, -1)
    kept, merged = first_even + 2 * kept, first_even + 2 * merged
    order = torch.cat([tokens[:, :protected], kept, tokens[:, first_odd::2], merged], dim=1)
    joined = num_slots - num_odd + partner
    slot = torch.zeros_like(order).scatter(1, order, torch.cat([tokens[:, :num_slots], joined], dim=1))
    count = torch.zeros_like(order[:, : num_slots + 1]).scatter_add(1, joined + 1, torch.ones_like(joined))
    return slot.int(), order.int(), count.cumsum(1).int()
