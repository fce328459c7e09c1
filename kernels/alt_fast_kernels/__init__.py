"""The four operations of token merging and entity alignment: Triton kernels, each beside an executable reference.

    plan = match(key, r, protected=1)                          # which tokens merge; up to half
    plan = match(key, r, protected=1, destinations=10)         # up to nine in ten
    x, size = merge(x, size, plan)                             # size-weighted mean of every slot
    x, size, normed = merge(x, size, plan, branch, norm=norm)  # with residual add and LayerNorm, in one pass
    out = proportional_attention(q, k, v, size)                # softmax(q k^T * scale + log size) v
    out = proportional_attention(q, k, v, size, rotary=Rotary(cos, sin, interleaved=True))  # q, k turned on the way
    index, aligned = align(tokens, entities, tau, seed)        # straight-through choice of one entity per token

Tensors on a GPU take the kernels, all others the references; `use_backend` overrides that.
"""

from alt_fast_kernels.align import align
from alt_fast_kernels.attention import Rotary, proportional_attention, proportional_attention_qkvpacked, rotate
from alt_fast_kernels.checks import check_values
from alt_fast_kernels.dispatch import use_backend
from alt_fast_kernels.match import MergePlan, compose, match, max_r
from alt_fast_kernels.merge import merge, unmerge

__all__ = [
    "MergePlan",
    "Rotary",
    "align",
    "check_values",
    "compose",
    "match",
    "max_r",
    "merge",
    "proportional_attention",
    "proportional_attention_qkvpacked",
    "rotate",
    "unmerge",
    "use_backend",
]
