"""The definitions again, as loops: what fast code is held to."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from alt_fast.tome.rules import RotaryRule


def match_by_loops(metric: Tensor, r: int, protected: int, destinations: list[int] | None = None) -> list[list[int]]:
    """Slots of every token; Python loops over one image at a time, double precision. Destinations: the odd tokens."""
    slots = []
    for tokens in metric.double():
        tokens = tokens / tokens.norm(dim=-1, keepdim=True)
        num = len(tokens)
        receiving = [i for i in range(protected, num) if i % 2] if destinations is None else destinations
        sources = [i for i in range(protected, num) if i not in receiving]
        most = (num - protected) // 2 if destinations is None else len(sources)
        proposals = []
        for i in sources:
            if receiving:
                scores = (-(tokens[i] * tokens[receiving]).sum(-1)).tolist()  # all summed alike, so that ties stay
                score, partner = min(zip(scores, receiving, strict=True))  # highest similarity, then lowest index
                proposals.append((score, i, partner))
        proposals.sort(key=lambda proposal: proposal[:2])
        merged = {i: partner for _, i, partner in proposals[: min(r, most)]}
        survivors = (
            [i for _, i, _ in proposals[len(merged) :]] if not protected else [i for i in sources if i not in merged]
        )
        order = [*range(protected), *survivors, *receiving]
        place = {token: slot for slot, token in enumerate(order)}
        slots.append([place[merged.get(i, i)] for i in range(num)])
    return slots


class RotaryBlock(NamedTuple):
    """Parts of a block with rotary positions, on one image.

    qkv: tokens [N, C] -> queries, keys, values [N, H, D], normed. angles: places [P, 2], of fractions too -> [P, H or
    1, D]. out: [N, H * D] -> what is added to the tokens. mlp: tokens -> what is added to them.
    """

    qkv: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    angles: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]


def merge_by_hand(
    x: Tensor, blocks: list[RotaryBlock], places: Tensor, rule: RotaryRule, r: int, interleaved: bool
) -> Tensor:
    """Tokens of one image behind all blocks, from x [N, C] fp64, a prefix and patches at places [P, 2].

    Every token knows its patches, and which of them it was before others joined it.
    """
    protected = len(x) - len(places)
    members = [[i - protected] if i >= protected else [] for i in range(len(x))]
    first = [patches[0] if patches else -1 for patches in members]
    for block in blocks:
        size = torch.tensor([max(len(patches), 1) for patches in members], dtype=x.dtype)
        tables = [_turn(block, places, rule, *token) for token in zip(members, first, strict=True)]
        cos, sin = (torch.stack(parts) for parts in zip(*tables, strict=True))
        q, k, v = block.qkv(x)
        turned_q, turned_k = (y * cos + _partner(y, interleaved) * sin for y in (q, k))
        scores = torch.einsum("nhd,mhd->hnm", turned_q, turned_k) / k.shape[-1] ** 0.5 + size.log()
        x = x + block.out(torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v).flatten(1))
        slots = match_by_loops(k.mean(1)[None], r, protected)[0]
        of_slots = [[i for i in range(len(x)) if slots[i] == slot] for slot in range(max(slots) + 1)]
        x = torch.stack([(x[of] * size[of, None]).sum(0) / size[of].sum() for of in of_slots])
        members = [[patch for i in of for patch in members[i]] for of in of_slots]
        first = [first[next((i for i in of if i % 2), of[0])] for of in of_slots]  # others merge into odd tokens
        x = x + block.mlp(x)
    return x


def _turn(
    block: RotaryBlock, places: Tensor, rule: RotaryRule, members: list[int], first: int
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [H or 1, D] of a token."""
    if not members:  # of the prefix
        still = torch.zeros_like(block.angles(places[:1])[0])
        return still.cos(), still
    if rule == "centroid":
        angle = block.angles(places[members].mean(0, keepdim=True))[0]
        return angle.cos(), angle.sin()
    angles = block.angles(places[[first] if rule == "survivor" else members])
    cos, sin = angles.cos().mean(0), angles.sin().mean(0)
    length = (cos**2 + sin**2).sqrt() if rule == "unit" else 1
    return cos / length, sin / length


def _partner(x: Tensor, interleaved: bool) -> Tensor:
    """A quarter turn of every pair of channels."""
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)
