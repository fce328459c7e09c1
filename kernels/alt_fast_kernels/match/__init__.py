"""Bipartite soft matching: which tokens merge into which (ToMe, arXiv 2210.09461, section 3)."""

import operator
from typing import SupportsIndex, cast

import torch
from torch import Tensor

from alt_fast_kernels.checks import check_device, may_read_values
from alt_fast_kernels.dispatch import takes_kernel
from alt_fast_kernels.match.op import match_op
from alt_fast_kernels.match.plan import MergePlan, compose, first_of_every, max_r
from alt_fast_kernels.match.reference import match_reference

__all__ = ["MergePlan", "compose", "match", "max_r"]

MAX_CHANNELS = 8192
"""Of keys (one head) that the kernels hold in a tile; wider ones match on PyTorch."""


def match(
    key: Tensor, r: SupportsIndex, protected: SupportsIndex = 0, destinations: SupportsIndex | Tensor = 2
) -> MergePlan:
    """Choose the r most similar (source, destination) token pairs by cosine similarity; sources merge away.

    key: [B, N, H, D] keys as the QKV projection leaves them (the head mean is taken here), or any metric [B, N, C];
        any strides, floating point; compared in fp32 by the kernels, in fp64 by the reference.
    r: tokens to remove, an int or whatever has `__index__`; clipped to `max_r`.
    protected: leading tokens that never merge (class, distillation, registers); they keep the first slots.
    destinations: which tokens others may merge into; all others that are not protected are sources. An int k >= 2:
        those whose index is k - 1 modulo k; 2, the odd tokens, is ToMe's choice. Or a tensor [D] of tokens, int32 or
        int64, ascending, none of them protected, the same for all images.

    Equal scores are settled in favour of the lower index. The slots hold the protected tokens, then the surviving
    sources (by index; without protected tokens by falling score, as ToMe does), then the destinations by index.
    The choice carries no gradient.
    Raises TypeError or ValueError naming the argument at fault. A key that is not finite is an error where values may
    be read (`check_values`); elsewhere its pairs rank below all others, by index. There alone the values of
    destinations are checked, too.
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
    destinations = _destinations(destinations, key, protected)
    r = min(r, max_r(num_tokens, protected, destinations))
    if r == 0:
        identity = torch.arange(num_tokens, dtype=torch.int32, device=key.device).expand(key.shape[0], -1)
        start = torch.zeros(key.shape[0], num_tokens + 1, dtype=torch.int32, device=key.device)
        return MergePlan(identity, identity, start, num_tokens)
    key = key if key.ndim == 4 else key.unsqueeze(2)
    if isinstance(destinations, Tensor):
        listed = destinations
    elif destinations == 2:
        listed = None
    else:
        listed = torch.arange(first_of_every(destinations, protected), num_tokens, destinations, device=key.device)
    if takes_kernel(key) and key.shape[3] <= MAX_CHANNELS:
        if may_read_values(key) and not bool(key.isfinite().all()):
            raise ValueError("key must be finite, got NaN or infinity in it")
        slot, order, start = match_op(key, r, protected, listed)
    else:
        slot, order, start = match_reference(key, r, protected, listed)
    return MergePlan(slot, order, start, num_tokens - r)


def _destinations(given: SupportsIndex | Tensor, key: Tensor, protected: int) -> int | Tensor:
    """Return k, or tokens [D]. Raises TypeError or ValueError for what is neither."""
    if not isinstance(given, Tensor) or given.ndim == 0:
        return _int("destinations", given, "an int or a tensor")
    num_tokens = key.shape[1]
    if given.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"destinations must be int32 or int64, got {given.dtype}")
    if given.ndim != 1 or not 0 < len(given) <= num_tokens - protected:
        raise ValueError(
            f"destinations must be [D], of 1 to {num_tokens - protected} tokens, got shape {tuple(given.shape)}"
        )
    check_device("destinations", given, key)
    if may_read_values(given):
        if not bool((given.diff() > 0).all()):
            raise ValueError("destinations must ascend, each token once")
        if not protected <= given[0] <= given[-1] < num_tokens:
            raise ValueError(f"destinations must be in [{protected}, {num_tokens}), got {given[0]} to {given[-1]}")
    return given


def _int(name: str, value: SupportsIndex, expected: str = "an int") -> int:
    """Return NumPy's and PyTorch's ints as Python's, and what an export leaves open as it is.

    Raises TypeError for what is none, bool included.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, torch.SymInt):
        return cast("int", value)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")
    return operator.index(value)
