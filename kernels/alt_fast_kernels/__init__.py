"""The four operations of token merging and entity alignment, each beside an executable reference.

plan = match(key, r, protected=1)                  # which tokens merge
x, size = merge(x, size, plan)                     # size-weighted mean of every slot
out = proportional_attention(q, k, v, size)        # softmax(q k^T * scale + log size) v
index, aligned = align(tokens, entities, tau, seed)  # straight-through choice of one entity per token
"""

from alt_fast_kernels.align import align
from alt_fast_kernels.attention import proportional_attention
from alt_fast_kernels.match import MergePlan, compose, match, max_r
from alt_fast_kernels.merge import merge, unmerge

__all__ = ["MergePlan", "align", "compose", "match", "max_r", "merge", "proportional_attention", "unmerge"]
