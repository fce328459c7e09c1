"""What a matching is: the even and odd tokens it pairs, and the plan it leaves."""

from typing import NamedTuple

from torch import Tensor


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


class Parity(NamedTuple):
    """Tokens behind the protected ones, by parity of their index.

    first_even, first_odd: the first token of each; the others follow in steps of 2. Even tokens are proposed for
    merging, odd ones are what they may join. num_even, num_odd: how many there are.
    """

    first_even: int
    first_odd: int
    num_even: int
    num_odd: int


def even_and_odd(num_tokens: int, protected: int) -> Parity:
    """Split the tokens that are not protected. The kernels' own copy is `even_and_odd_of` in sorting.py."""
    first_even, first_odd = protected + protected % 2, protected + 1 - protected % 2
    return Parity(first_even, first_odd, (num_tokens - first_even + 1) // 2, (num_tokens - first_odd + 1) // 2)


def max_r(num_tokens: int, protected: int) -> int:
    """Return the largest reduction one matching can make: (N - protected) // 2, as in ToMe."""
    return max(0, (num_tokens - protected) // 2)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """Chain two mergings' slots: first [B, N], second [B, N'] -> [B, N] int32. Traces tokens through the layers."""
    return second.gather(1, first.long())
