"""Executable specification of bipartite soft matching."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from alt_fast_kernels.checks import may_read_values
from alt_fast_kernels.match.plan import even_and_odd

CHUNK = 1024
"""Even tokens whose scores exist at a time."""

GRID = 2.0**26
"""Steps of a metric's components in [-1, 1]. Products of two then sum to below 2**53 steps, exactly in fp64."""


def match_reference(key: Tensor, r: int, protected: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return slot, order and start of a plan for key [B, N, H, D], 0 < r, clipped.

    Contract: `alt_fast_kernels.match`.
    """
    batch, num_tokens = key.shape[:2]
    first_even, first_odd, num_even, num_odd = even_and_odd(num_tokens, protected)
    with _without_autocast(key.device.type):
        mean = key.to(torch.promote_types(key.dtype, torch.float32)).mean(2)
        norm = mean.norm(dim=-1, keepdim=True)
        metric = _exactly_summable(mean / norm.clamp_min(1e-12))
        if may_read_values(key) and not bool(norm.isfinite().all()):
            raise ValueError("key must be finite, got NaN, infinity or a norm beyond fp32")
        best, partner = _best(metric[:, first_even::2], metric[:, first_odd::2])

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


def _without_autocast(device: str) -> AbstractContextManager[object]:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _exactly_summable(metric: Tensor) -> Tensor:
    """Round unit vectors so that a matmul in fp64 is exact in whatever order it sums: equal tokens score equally.

    A matmul in fp32 gives equal columns different last bits. ONNX runtimes and MPS may have no fp64: there it must do.
    """
    if torch.onnx.is_in_onnx_export() or metric.device.type == "mps":
        return metric
    return (metric.double() * GRID).round() / GRID


def _best(even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
    """Every even token's maximal score and the first odd token that has it, [B, num_even]; NaN counts as -2."""
    best, partner = [], []
    for rows in even.split(CHUNK, 1):
        scores = rows @ odd.transpose(1, 2)
        top = scores.masked_fill(scores.isnan(), -2.0).max(dim=-1)  # below every cosine; the first of equal maxima
        best.append(top.values)
        partner.append(top.indices)
    return (best[0], partner[0]) if len(best) == 1 else (torch.cat(best, 1), torch.cat(partner, 1))
