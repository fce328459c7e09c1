"""The merge behind attention: what flows from block to block, and the step between attention and MLP."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from alt_fast_kernels import compose, match, max_r, merge


class Tokens(NamedTuple):
    """What flows from block to block.

    x: [B, N', C]. size: [B, N'] fp32, patches in each token; None before the first merge, when all are 1.
    source: [B, N] int32, the token that each of the N first tokens is in now; None before, or when nobody asks.
    """

    x: Tensor
    size: Tensor | None = None
    source: Tensor | None = None


def merge_step(
    tokens: Tokens, branch: Tensor, key: Tensor, norm: nn.Module, r: int | float, protected: int, trace: bool
) -> tuple[Tokens, Tensor]:
    """What stands between attention and MLP: x + branch, merged by similarity of keys, and its norm.

    branch: [B, N, C], attention's output. key: [B, N, H, D]. norm: the MLP's. r: tokens to remove, or a fraction.
    protected: leading tokens that never merge. trace: follow `source`.
    Returns the merged tokens and norm(x'), the MLP's input.
    """
    x, size, source = tokens
    num_tokens = x.shape[1]
    if isinstance(r, float):
        r = int(r * (num_tokens - protected))
    if min(r, max_r(num_tokens, protected)) <= 0:
        x = x + branch
        return Tokens(x, size, source), norm(x)
    plan = match(key, r, protected)
    if size is None:
        size = torch.ones(x.shape[:2], device=x.device)
    if trace:
        source = plan.slot if source is None else compose(source, plan.slot)
    x, size, normed = merge(x, size, plan, branch, norm=norm)
    return Tokens(x, size, source), normed
