"""What a matching is: the tokens that may merge and those they may join, and the plan it leaves."""

import operator
from typing import NamedTuple, SupportsIndex

import torch
from torch import Tensor

ONE_LAUNCH_IMAGES = 16
"""Up to as many short images, one launch is faster than two that fill the GPU."""


class MergePlan(NamedTuple):
    """Where every token goes, and the way back.

    slot: [B, N] int32, the output slot of each input token, in [0, num_slots).
    order: [B, N] int32, the tokens by slot: first the one that keeps each slot, then the N - num_slots merged ones,
        sorted by slot and index.
    start: [B, num_slots + 1] int32: the tokens that join slot j are order[num_slots:][start[j] : start[j + 1]].
    num_slots: number of tokens after merging, N - r.
    """

    slot: Tensor
    order: Tensor
    start: Tensor
    num_slots: int


class Sides(NamedTuple):
    """The tokens behind the protected ones: sources, proposed for merging, and destinations, which they may join.

    first_source, first_destination: the first token of each, where the others follow in steps of 2; of listed
    destinations (`listed_by_side`) the place of the first one in the list.
    """

    first_source: int
    first_destination: int
    num_sources: int
    num_destinations: int


def sides(num_tokens: int, protected: int, num_listed: int | None = None) -> Sides:
    """Split the tokens that are not protected. The kernels' own copy is `sides_of` in sorting.py.

    num_listed: how many destinations are listed; None when they are the tokens of odd index, and sources even ones.
    """
    if num_listed is not None:
        num_sources = num_tokens - protected - num_listed
        return Sides(0, num_sources, num_sources, num_listed)
    first_even, first_odd = protected + protected % 2, protected + 1 - protected % 2
    return Sides(first_even, first_odd, (num_tokens - first_even + 1) // 2, (num_tokens - first_odd + 1) // 2)


def listed_by_side(destinations: Tensor, num_tokens: int, protected: int) -> Tensor:
    """All tokens that are not protected, [N - protected] int64: sources, then destinations [D], each by index.

    Destinations out of order, or named twice, leave it a permutation.
    """
    tokens = torch.arange(protected, num_tokens, device=destinations.device)
    receives = torch.zeros_like(tokens).scatter(0, destinations.long() - protected, 1)
    return (tokens + num_tokens * receives).sort().values % num_tokens


def first_of_every(k: int, protected: int) -> int:
    """Return the first destination, where all tokens whose index is k - 1 modulo k are: k = 2 is the odd ones."""
    return protected + (-1 - protected) % k


def max_r(num_tokens: int, protected: int, destinations: SupportsIndex | Tensor = 2) -> int:
    """Return the largest reduction one matching can make with `match`'s destinations.

    All sources, or none where there is no destination; of every other token (N - protected) // 2, as in ToMe.
    Raises ValueError for destinations below 2.
    """
    if isinstance(destinations, Tensor) and destinations.ndim:
        return num_tokens - protected - len(destinations)
    k = operator.index(destinations)
    if k < 2:
        raise ValueError(f"destinations must be >= 2, every k-th token, or a tensor of tokens, got {k}")
    if k == 2:
        return max(0, (num_tokens - protected) // 2)
    num_destinations = len(range(first_of_every(k, protected), num_tokens, k))
    return num_tokens - protected - num_destinations if num_destinations else 0


def compose(first: Tensor, second: Tensor) -> Tensor:
    """Chain two mergings' slots: first [B, N], second [B, N'] -> [B, N] int32. Traces tokens through the layers.

    Raises ValueError for slots of other images.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[0] != second.shape[0]:
        raise ValueError(
            f"slots must be [B, N] and [B, N'] of the same images, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    return second.gather(1, first.long())
