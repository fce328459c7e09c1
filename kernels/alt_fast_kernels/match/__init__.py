"""Bipartite soft matching: which tokens merge into which (ToMe, arXiv 2210.09461, section 3)."""

import operator
from typing import SupportsIndex

import torch
from torch import Tensor

from alt_fast_kernels.checks import may_read_values
from alt_fast_kernels.dispatch import takes_kernel
from alt_fast_kernels.match.op import match_op
from alt_fast_kernels.match.plan import MergePlan, compose, max_r
from alt_fast_kernels.match.reference import match_reference

__all__ = ["MergePlan", "compose", "match", "max_r"]

MAX_CHANNELS = 8192
"""Of keys (one head) that the kernels hold in a tile; wider ones match on PyTorch."""


@torch.no_grad()
def match(key: Tensor, r: SupportsIndex, protected: SupportsIndex = 0) -> MergePlan:
    """Choose the r most similar (even, odd) token pairs by cosine similarity.

    key: [B, N, H, D] keys as the QKV projection leaves them (the head mean is taken here), or any metric [B, N, C];
        any strides, floating point; compared in fp32 by the kernels, in fp64 by the reference.
    r: tokens to remove, an int or whatever has `__index__`; clipped to (N - protected) // 2.
    protected: leading tokens that never merge (class, distillation, registers); they keep the first slots.

    Equal scores are settled in favour of the lower index. The slots hold the protected tokens, then the surviving
    even tokens (by index; without protected tokens by falling score, as ToMe does), then the odd tokens by index.
    The choice carries no gradient.
    Raises TypeError or ValueError naming the argument at fault. A key that is not finite is an error where values may
    be read (`check_values`); elsewhere its pairs rank below all others, by index.
    """
    r = _int("r", r)
    protected = _int("protected", protected)
    if r < 0:
        raise ValueError(f"r must be >= 0, got {r}")
    if key.ndim not in (3, 4):
        raise ValueError(f"key must be [B, N, C] or [B, N, H, D], got shape {tuple(key.shape)}")
    if not key.is_floating_point():
        raise TypeError(f"key must be floating point, got {key.dtype}")
    if 0 in key.shape[2:]:
        raise ValueError(f"key must have at least one channel, got shape {tuple(key.shape)}")
    num_tokens = key.shape[1]
    if not 0 <= protected <= num_tokens:
        raise ValueError(f"protected must be in [0, {num_tokens}], got {protected}")
    r = min(r, max_r(num_tokens, protected))
    if r == 0:
        identity = torch.arange(num_tokens, dtype=torch.int32, device=key.device).expand(key.shape[0], -1)
        start = torch.zeros(key.shape[0], num_tokens + 1, dtype=torch.int32, device=key.device)
        return MergePlan(identity, identity, start, num_tokens)
    key = key if key.ndim == 4 else key.unsqueeze(2)
    if takes_kernel(key) and key.shape[3] <= MAX_CHANNELS:
        if may_read_values(key) and not bool(key.isfinite().all()):
            raise ValueError("key must be finite, got NaN or infinity in it")
        slot, order, start = match_op(key, r, protected)
    else:
        slot, order, start = match_reference(key, r, protected)
    return MergePlan(slot, order, start, num_tokens - r)


def _int(name: str, value: SupportsIndex) -> int:
    """Return NumPy's and PyTorch's ints as Python's. Raises TypeError for what is none, bool included."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    return value if isinstance(value, int) else operator.index(value)
