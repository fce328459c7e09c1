"""The definitions again, as loops: what fast code is held to."""

from torch import Tensor

from alt_fast_kernels import max_r


def match_by_loops(metric: Tensor, r: int, protected: int) -> list[list[int]]:
    """Slots of every token; Python loops over one image at a time, double precision."""
    slots = []
    for tokens in metric.double():
        tokens = tokens / tokens.norm(dim=-1, keepdim=True)
        num = len(tokens)
        even, odd = range(protected + protected % 2, num, 2), range(protected + 1 - protected % 2, num, 2)
        proposals = []
        for i in even:
            if odd:
                scores = (-(tokens[i] * tokens[odd.start :: 2]).sum(-1)).tolist()  # all summed alike, so that ties stay
                score, partner = min(zip(scores, odd, strict=True))  # highest similarity, then lowest index
                proposals.append((score, i, partner))
        proposals.sort(key=lambda proposal: proposal[:2])
        merged = {i: partner for _, i, partner in proposals[: min(r, max_r(num, protected))]}
        survivors = (
            [i for _, i, _ in proposals[len(merged) :]] if not protected else [i for i in even if i not in merged]
        )
        order = [*range(protected), *survivors, *odd]
        place = {token: slot for slot, token in enumerate(order)}
        slots.append([place[merged.get(i, i)] for i in range(num)])
    return slots
