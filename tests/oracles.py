"""The definitions again, as loops: what fast code is held to."""

from torch import Tensor


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
