"""Token Fusion: pruning in early layers, merging that keeps norms in late ones (Kim et al., arXiv 2312.01026)."""

from dataclasses import replace

import torch
from torch import Tensor

from alt_fast.methods.plans import kept_alone, removable, rescaled
from alt_fast.tome.tokens import Attended, Tokens
from alt_fast_kernels import MergePlan, match


def tofu_step(at: Attended) -> tuple[Tokens, Tensor]:
    """Match as ToMe does; then drop the r sources in the first half of the layers, and merge them by MLERP in the rest.

    r: tokens to remove, at most half of those that are not protected. MLERP: the mean of a slot, made as long as the
    longest of its tokens. The paper prunes where a layer's answer to a mean of two inputs is far from the mean of its
    answers, which is early; half the depth is the boundary here for every model. Means and attention count the patches
    of a token, as ToMe's do, also those that were dropped into it.
    """
    r = removable(at)
    if r == 0:
        return at.keep()
    plan = match(at.key, r, at.protected)
    if 2 * at.layer < at.num_layers:
        return at.merge(plan, kept_alone(plan, at.tokens.sizes()))
    tokens, _ = replace(at, norm=None).merge(plan)
    return rescaled(at, tokens, _lengthening(at.tokens.x + at.branch, tokens.x, plan))


def _lengthening(x: Tensor, merged: Tensor, plan: MergePlan) -> Tensor:
    """By how much merged tokens [B, N', C] are shorter than the longest of x [B, N, C] in them: [B, N'] fp32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm, mean_norm = (torch.linalg.vector_norm(y, dim=-1, dtype=dtype) for y in (x, merged))
    longest = torch.zeros_like(mean_norm).scatter_reduce(1, plan.slot.long(), norm, "amax", include_self=False)
    return longest / mean_norm.clamp_min(torch.finfo(dtype).tiny)
