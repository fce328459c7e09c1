"""Dropping evenly: what is left when nothing is chosen and nothing is merged."""

import torch
from torch import Tensor

from alt_fast.methods.plans import kept_alone, plan_for_all, removable
from alt_fast.tome.tokens import Attended, Tokens


def drop_step(at: Attended) -> tuple[Tokens, Tensor]:
    """Drop r tokens, evenly spread over those that are there, in their order.

    r: tokens to remove, at most half of those that are not protected. The i-th to go, from 0, is token
    (2 i + 1) n / (2 r), rounded down, of n. Where a host reads patches, a dropped one has the features of the token
    before it.
    """
    r = removable(at)
    if r == 0:
        return at.keep()
    batch, num_tokens = at.tokens.x.shape[:2]
    token = torch.arange(num_tokens, device=at.tokens.x.device)
    gone = at.protected + (2 * token[:r] + 1) * (num_tokens - at.protected) // (2 * r)
    plan = plan_for_all(token.scatter(0, gone, gone - 1), num_tokens - r, batch)
    return at.merge(plan, kept_alone(plan, at.tokens.sizes()))
