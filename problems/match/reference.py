"""Bipartite soft matching of ToMe (arXiv 2210.09461, section 3), in plain PyTorch."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from problems.checks import NEAR, cosines, exact_unit, malformed, wrong_choice

Inputs = tuple[Tensor, int, int]
"""key [B, N, H, D], a strided view of a packed projection; r, how many tokens merge; how many are protected."""

Plan = tuple[Tensor, Tensor, Tensor]
"""slot [B, N], order [B, N] and start [B, N - r + 1], int32."""


def generate_input(
    batch: int,
    num_tokens: int,
    heads: int,
    head_dim: int,
    r: int,
    protected: int,
    dtype: str,
    seed: int,
    device: torch.device | str = "cpu",
) -> Inputs:
    """Draw keys in which almost every token has a twin on its own side, in turn a near and an equal one."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(getattr(torch, dtype))

    key = normal(batch, num_tokens, 3, heads, head_dim)[:, :, 1]
    image = torch.arange(batch, device=device)[:, None]
    for side in sides(num_tokens, protected, device):
        pairs = len(side) // 2
        shuffled = side[torch.rand(batch, len(side), generator=generator, device=device).argsort(1)]
        twins = key[image, shuffled[:, :pairs]]
        near = twins[:, ::2]
        near += NEAR * normal(*near.shape)
        key[image, shuffled[:, pairs : 2 * pairs]] = twins
    return key, r, protected


def sides(num_tokens: int, protected: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Tokens that may merge, those of even index, and those that they may join, of odd index."""
    tokens = torch.arange(protected, num_tokens, device=device)
    return tokens[tokens % 2 == 0], tokens[tokens % 2 == 1]


def ref_kernel(inputs: Inputs) -> Plan:
    """Match, with scores that are exact: equal tokens tie, and the lower index wins."""
    key, r, protected = inputs
    sources, destinations = sides(key.shape[1], protected, key.device)
    metric = exact_unit(key.double().mean(2))
    best, partner = (metric[:, sources] @ metric[:, destinations].mT).max(2)
    return make_plan(best.argsort(dim=1, descending=True, stable=True), partner, key.shape[1], r, protected)


def make_plan(by_rank: Tensor, partner: Tensor, num_tokens: int, r: int, protected: int) -> Plan:
    """Make a plan of choices: by_rank and partner [B, sources], places among the sources and the destinations.

    by_rank: sources by falling cosine, of which the first r merge. partner: whom each joins.
    """
    batch, num_slots = len(by_rank), num_tokens - r
    sources, destinations = sides(num_tokens, protected, by_rank.device)
    tokens = torch.arange(num_tokens, device=by_rank.device).expand(batch, -1)
    merged, kept = by_rank[:, :r], by_rank[:, r:]
    if protected:
        kept = kept.sort(1).values
    merged = merged.gather(1, (partner.gather(1, merged) * num_tokens + merged).argsort(1))
    joined = num_slots - len(destinations) + partner.gather(1, merged)
    order = torch.cat([tokens[:, :protected], sources[kept], destinations.expand(batch, -1), sources[merged]], 1)
    slot = torch.empty_like(order).scatter(1, order, torch.cat([tokens[:, :num_slots], joined], 1))
    return slot.int(), order.int(), _starts(joined, num_slots).int()


def check_implementation(inputs: Inputs, output: Any) -> str | None:
    """Say why output is no plan that the definition allows when cosines as near as fp32 can tell may swap."""
    key, r, protected = inputs
    if reason := malformed(output, dict(zip(("slot", "order", "start"), ref_kernel(inputs), strict=True))):
        return reason
    slot, order, start = (part.long() for part in output)
    num_slots = key.shape[1] - r
    sources, destinations = sides(key.shape[1], protected, key.device)
    mean = key.double().mean(2)
    scores, tolerance = cosines(mean[:, sources], mean[:, destinations])
    for holds, rule in _rules((slot, order, start), sources, destinations, scores.amax(2), tolerance):
        if not bool(holds.all()):
            return f"image {int((~holds).int().argmax())}: {rule}"
    merged = order[:, num_slots:]
    of_merged = scores.gather(1, _place(merged, sources)[:, :, None].expand(-1, -1, len(destinations)))
    chosen = slot.gather(1, merged) - (num_slots - len(destinations))
    return wrong_choice(
        of_merged.flatten(0, 1),
        chosen.flatten(),
        tolerance,
        lambda row: f"image {row // r}: token {int(merged.flatten()[row])}",
        lambda column: int(destinations[column]),
    )


def _rules(
    plan: Plan, sources: Tensor, destinations: Tensor, best: Tensor, tolerance: float
) -> Iterator[tuple[Tensor, str]]:
    """Yield whether every image keeps each rule, [B] bool, and the rule; each may rely on those before it.

    best: [B, sources], the cosine of each source to the destination most like it.
    """
    slot, order, start = plan
    num_tokens, num_slots = order.shape[1], start.shape[1] - 1
    tokens = torch.arange(num_tokens, device=order.device)
    survivors, merged = order[:, :num_slots], order[:, num_slots:]
    first = num_slots - len(destinations)  # slot of a destination
    protected = num_tokens - len(sources) - len(destinations)
    yield (order.sort(1).values == tokens).all(1), "order must name every token once"
    places = torch.cat([tokens[:protected], destinations])
    found = torch.cat([survivors[:, :protected], survivors[:, first:]], 1)
    yield (found == places).all(1), "order must begin with protected tokens, and have the destinations as last slots"
    by_order = slot.gather(1, order)
    yield (by_order[:, :num_slots] == tokens[:num_slots]).all(1), "slot and order must name the same survivors"
    joined = by_order[:, num_slots:]
    yield ((joined >= first) & (joined < num_slots)).all(1), "merged tokens must join a destination"
    yield ((joined * num_tokens + merged).diff() > 0).all(1), "merged tokens must stand by slot, then by index"
    yield (start == _starts(joined, num_slots)).all(1), "start must count the tokens that join slots before each"
    kept = survivors[:, protected:first]
    of_kept, of_merged = (best.gather(1, _place(part, sources)) for part in (kept, merged))
    if protected:
        yield (kept.diff() > 0).all(1), "surviving sources must stand by index"
    else:
        falls = of_kept[:, :-1] >= of_kept[:, 1:] - tolerance
        tied = (of_kept[:, :-1] == of_kept[:, 1:]) & (kept.diff() < 0)
        yield (falls & ~tied).all(1), "surviving sources must stand by falling cosine, equal ones by index"
    more = of_merged[:, :, None] >= of_kept[:, None] - tolerance
    tied = (of_merged[:, :, None] == of_kept[:, None]) & (merged[:, :, None] > kept[:, None])
    yield (more & ~tied).all(2).all(1), "the most similar tokens must merge, of equal ones those of lower index"


def _starts(joined: Tensor, num_slots: int) -> Tensor:
    """How many of the slots joined [B, r], which rise, are below each number up to num_slots, [B, num_slots + 1]."""
    slots = torch.arange(num_slots + 1, device=joined.device).repeat(len(joined), 1)
    return torch.searchsorted(joined.contiguous(), slots)


def _place(tokens: Tensor, sources: Tensor) -> Tensor:
    """Where tokens stand among the sources, which rise."""
    return torch.searchsorted(sources, tokens.contiguous())
