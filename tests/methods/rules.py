"""What the methods do to one image, from their papers, as loops: which tokens become one, and what that one is."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from alt_fast.tome.tokens import Attended
from tests.oracles import match_by_loops


class Group(NamedTuple):
    """Tokens that become one: factor * (sum of weight * features) / (sum of weights)."""

    members: list[int]
    weights: list[float]
    factor: float = 1.0


Rule = Callable[[Attended, int, float], list[Group]]
"""What a step does to image b of a batch, at this r."""


def sizes(at: Attended, b: int) -> list[float]:
    return at.tokens.sizes()[b].tolist()


def features(at: Attended, b: int) -> Tensor:
    return (at.tokens.x + at.branch)[b].double()


def keys(at: Attended, b: int) -> Tensor:
    return at.key[b].double().mean(1)


def similarity(rows: Tensor) -> list[list[float]]:
    unit = rows / rows.norm(dim=-1, keepdim=True)
    return (unit @ unit.T).round(decimals=12).tolist()


def clipped(at: Attended, r: float) -> int:
    return min(int(r), (at.key.shape[1] - at.protected) // 2)


def joined(at: Attended, b: int, keeper: dict[int, int], weights: list[float] | None = None) -> list[Group]:
    """All tokens that are not empty, each in the group of its keeper, by sizes."""
    size = sizes(at, b)
    weights = size if weights is None else weights
    groups: dict[int, list[int]] = {}
    for i, n in enumerate(size):
        if n > 0:
            groups.setdefault(keeper.get(i, i), []).append(i)
    return [Group(members, [weights[i] for i in members]) for members in groups.values()]


def tome(at: Attended, b: int, r: float) -> list[Group]:
    slots = match_by_loops(keys(at, b)[None], int(r), at.protected)[0]
    first: dict[int, int] = {}
    for i, slot in enumerate(slots):
        first.setdefault(slot, i)
    return joined(at, b, {i: first[slot] for i, slot in enumerate(slots)})


def tofu(at: Attended, b: int, r: float) -> list[Group]:
    length = features(at, b).norm(dim=-1).tolist()
    groups = []
    for members, weights, _ in tome(at, b, r):
        if len(members) == 1:
            groups.append(Group(members, weights))
        elif at.layer < at.num_layers / 2:
            (target,) = (i for i in members if i % 2)
            groups.append(Group(members, [float(i == target) for i in members]))
        else:
            mean = sum(w * features(at, b)[i] for i, w in zip(members, weights, strict=True)) / sum(weights)
            groups.append(Group(members, weights, max(length[i] for i in members) / float(mean.norm())))
    return groups


def pitome(at: Attended, b: int, r: float) -> list[Group]:
    count, alike = clipped(at, r), similarity(keys(at, b)[at.protected :])
    margin = 0.9 - 0.9 * at.layer / at.num_layers
    energy = []
    for row in alike:
        terms = [cosine if cosine >= margin else math.exp(cosine - margin) - 1 for cosine in row]
        energy.append(round(sum(terms) / len(terms), 10))
    chosen = sorted(range(len(energy)), key=lambda i: (-energy[i], i))[: 2 * count]
    keeper = {}
    for i in chosen[::2]:
        nearest = max(chosen[1::2], key=lambda j: alike[i][j])  # the first of equal ones
        keeper[at.protected + i] = at.protected + nearest
    return joined(at, b, keeper)


def evit(at: Attended, b: int, r: float) -> list[Group]:
    """For an attention that projects queries, keys and values at once, heads side by side, without biases or norms."""
    count = clipped(at, r)
    assert isinstance(at.attention, nn.Module)
    assert at.normed is not None
    num_tokens, heads, dim = at.key.shape[1:]
    packed = at.attention.qkv(at.normed[b]).detach().double().view(num_tokens, 3, heads, dim)
    attention = [0.0] * num_tokens
    for head in range(heads):
        scores = [float(packed[0, 0, head] @ packed[i, 1, head]) / math.sqrt(dim) for i in range(num_tokens)]
        total = sum(math.exp(score) for score in scores)
        for i, score in enumerate(scores):
            attention[i] += math.exp(score) / total / heads
    patches = sorted(range(at.protected, num_tokens), key=lambda i: (-attention[i], i))
    rest = patches[len(patches) - count - 1 :] if count else []
    groups = [Group([i], [1.0]) for i in range(num_tokens) if i not in rest]
    if rest:
        weights = [attention[i] for i in rest]
        groups.append(Group(rest, weights, sum(weights)))
    return groups


def mpm(at: Attended, b: int, r: float) -> list[Group]:
    layers = [(2 * i + 1) * at.num_layers // (2 * int(r)) for i in range(int(r))]
    size, alike = sizes(at, b), similarity(features(at, b))
    free = [i for i in range(at.protected, len(size)) if size[i] > 0]
    nearest = {}
    for i in free:
        others = [j for j in free if j != i]
        if others and at.layer in layers:
            nearest[i] = max(others, key=lambda j: alike[i][j])
    keeper = {j: i for i, j in nearest.items() if nearest[j] == i and i < j}
    return joined(at, b, keeper, [1.0] * len(size))


def threshold(at: Attended, b: int, r: float) -> list[Group]:
    size, alike = sizes(at, b), similarity(keys(at, b))
    free = [i for i in range(at.protected, len(size)) if size[i] > 0]
    targets = [i for i in free if i % 2]
    keeper = {}
    for i in free:
        if i % 2 == 0 and targets:
            partner = max(targets, key=lambda j: alike[i][j])
            if alike[i][partner] > r:
                keeper[i] = partner
    return joined(at, b, keeper)


def mixed(number: int) -> int:
    for _ in range(2):
        number = (number ^ (number >> 16)) * 0x45D9F3B % 2**32
    return number ^ (number >> 16)


def random(at: Attended, b: int, r: float) -> list[Group]:
    count = clipped(at, r)
    order = sorted(range(at.key.shape[1] - at.protected), key=lambda i: mixed(at.layer * 2**16 + at.protected + i))
    pairs = zip(order[:count], order[count : 2 * count], strict=True)
    return joined(at, b, {at.protected + i: at.protected + j for i, j in pairs})


def drop(at: Attended, b: int, r: float) -> list[Group]:
    count, num_patches = clipped(at, r), at.key.shape[1] - at.protected
    gone = {at.protected + math.floor((i + 0.5) * num_patches / count) for i in range(count)}
    groups = joined(at, b, {i: i - 1 for i in gone})
    return [Group(members, [float(i not in gone) for i in members]) for members, *_ in groups]


def pool(at: Attended, b: int, r: float) -> list[Group]:
    side = math.isqrt(at.key.shape[1] - at.protected)
    if at.tokens.merges:
        return joined(at, b, {})
    left, budget = side**2, 0
    for _ in range(at.num_layers):
        left -= min(int(r), left // 2)
        budget += left
    pooled = math.ceil(side / 2) ** 2
    off = [abs(layer * side**2 + (at.num_layers - layer) * pooled - budget) for layer in range(at.num_layers + 1)]
    if off.index(min(off)) != at.layer:
        return joined(at, b, {})
    keeper = {}
    for row in range(side):
        for column in range(side):
            corner = (row - row % 2) * side + column - column % 2
            keeper[at.protected + row * side + column] = at.protected + corner
    return joined(at, b, keeper)


RULES: dict[str, Rule] = {
    "tome": tome,
    "random": random,
    "tofu": tofu,
    "pitome": pitome,
    "evit": evit,
    "mpm": mpm,
    "threshold": threshold,
    "drop": drop,
    "pool": pool,
}
