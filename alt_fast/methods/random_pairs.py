"""Merging at random: what a method is worth is what it gains over this."""

import torch
from torch import Tensor

from alt_fast.methods.plans import plan_for_all, removable
from alt_fast.tome.tokens import Attended, Tokens


def random_step(at: Attended) -> tuple[Tokens, Tensor]:
    """Merge r pairs of tokens that nobody looked at: the means and sizes are ToMe's, the choice is blind.

    The pairs follow from the layer and the number of tokens alone, by a fixed hash: no generator, the same pairs for
    every image and in every run. r: tokens to remove, at most half of those that are not protected; no token is in two
    pairs.
    """
    r = removable(at)
    if r == 0:
        return at.keep()
    batch, num_tokens = at.tokens.x.shape[:2]
    token = torch.arange(num_tokens, device=at.tokens.x.device)
    shuffled = at.protected + _hash(token[at.protected :] + 2**16 * at.layer).argsort(stable=True)
    keeper = token.scatter(0, shuffled[:r], shuffled[r : 2 * r])
    return at.merge(plan_for_all(keeper, num_tokens - r, batch))


def _hash(number: Tensor) -> Tensor:
    """Mix the bits of numbers [N] int64 in [0, 2**32) into others of that range."""
    for _ in range(2):
        number = (number ^ (number >> 16)) * 0x45D9F3B % 2**32
    return number ^ (number >> 16)
