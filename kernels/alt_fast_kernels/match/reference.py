"""Executable specification of bipartite soft matching."""

import torch
from torch import Tensor

from alt_fast_kernels.checks import may_read_values
from alt_fast_kernels.dispatch import without_autocast
from alt_fast_kernels.match.plan import listed_by_side, sides

CHUNK = 1024
"""Sources whose scores exist at a time."""

GRID = 2.0**26
"""Steps of a metric's components in [-1, 1]. Products of two then sum to below 2**53 steps, exactly in fp64."""


@torch.no_grad()
def match_reference(
    key: Tensor, r: int, protected: int, destinations: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return slot, order and start of a plan for key [B, N, H, D], 0 < r, clipped.

    destinations: [D] tokens, or None for the odd ones. Contract: `alt_fast_kernels.match`.
    """
    batch, num_tokens = key.shape[:2]
    tokens = torch.arange(num_tokens, device=key.device)
    if destinations is None:
        first_even, first_odd, num_sources, num_destinations = sides(num_tokens, protected)
        sources, destinations = tokens[first_even::2], tokens[first_odd::2]
    else:
        _, _, num_sources, num_destinations = sides(num_tokens, protected, len(destinations))
        listed = listed_by_side(destinations, num_tokens, protected)
        sources, destinations = listed[:num_sources], listed[num_sources:]
    with without_autocast(key):
        mean = key.to(torch.promote_types(key.dtype, torch.float32)).mean(2)
        norm = mean.norm(dim=-1, keepdim=True)
        metric = _exactly_summable(mean / norm.clamp_min(1e-12))
        known = may_read_values(key)
        if known and not bool(norm.isfinite().all()):
            raise ValueError("key must be finite, got NaN, infinity or a norm beyond fp32")
        best, partner = _best(metric[:, sources], metric[:, destinations], finite=known)

    if torch.onnx.is_in_onnx_export():  # ONNX has no stable sort, but its TopK puts the lower index first
        by_rank = best.topk(best.shape[1], dim=-1).indices
    else:
        by_rank = best.argsort(dim=-1, descending=True, stable=True)
    merged, kept = by_rank[:, :r], by_rank[:, r:]
    if protected:
        kept = kept.sort(dim=-1).values
    code = (partner.gather(1, merged) * num_sources + merged).sort(dim=-1).values  # by partner, then by index
    partner, merged = code // num_sources, code % num_sources

    num_slots = num_tokens - r
    tokens, destinations = tokens.expand(batch, -1), destinations.expand(batch, -1)
    order = torch.cat([tokens[:, :protected], sources[kept], destinations, sources[merged]], dim=1)
    joined = num_slots - num_destinations + partner
    slot = torch.zeros_like(order).scatter(1, order, torch.cat([tokens[:, :num_slots], joined], dim=1))
    count = torch.zeros_like(order[:, : num_slots + 1]).scatter_add(1, joined + 1, torch.ones_like(joined))
    return slot.int(), order.int(), count.cumsum(1).int()


def _exactly_summable(metric: Tensor) -> Tensor:
    """Round unit vectors so that a matmul in fp64 is exact in whatever order it sums: equal tokens score equally.

    A matmul in fp32 gives equal columns different last bits. ONNX runtimes and MPS may have no fp64: there it must do.
    """
    if torch.onnx.is_in_onnx_export() or metric.device.type == "mps":
        return metric
    return (metric.double() * GRID).round() / GRID


def _best(sources: Tensor, destinations: Tensor, finite: bool) -> tuple[Tensor, Tensor]:
    """Every source's maximal score and the first destination that has it, [B, num_sources]; NaN counts as -2."""
    best, partner = [], []
    for rows in sources.split(CHUNK, 1):
        scores = rows @ destinations.transpose(1, 2)
        if not finite:
            scores = scores.masked_fill(scores.isnan(), -2.0)  # below every cosine
        top = scores.max(dim=-1)  # the first of equal maxima
        best.append(top.values)
        partner.append(top.indices)
    return (best[0], partner[0]) if len(best) == 1 else (torch.cat(best, 1), torch.cat(partner, 1))
