"""Which norms the kernel computes itself, and what it needs to know of them."""

from typing import TypeGuard

import torch
from torch import Tensor, nn

LIBRARIES = ("torch", "timm", "open_clip", "clip")
"""Whose own subclasses of nn.LayerNorm compute what nn.LayerNorm does."""


def is_fusable(norm: nn.Module | None) -> TypeGuard[nn.LayerNorm]:
    """Return whether a kernel may stand in for this module: a LayerNorm of a known library, without hooks.

    Nor may it have a forward of its own, as offloading gives it.
    """
    if not isinstance(norm, nn.LayerNorm) or type(norm).__module__.partition(".")[0] not in LIBRARIES:
        return False
    if "forward" in vars(norm):
        return False
    return not (norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks)


def check_norm(norm: nn.Module, channels: int) -> None:
    """Raise unless norm is a module; of an nn.LayerNorm the width must be `channels`."""
    if not isinstance(norm, nn.Module):
        raise TypeError(f"norm must be an nn.Module, got {type(norm).__name__}")
    if isinstance(norm, nn.LayerNorm) and tuple(norm.normalized_shape) != (channels,):
        raise ValueError(f"norm must be over {channels} channels, got {norm}")


def norm_weights(norm: nn.LayerNorm, x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return weight, bias and eps for tokens x [B, N, C]: ones and zeros where the norm has none."""
    weight, bias = norm.weight, norm.bias
    if weight is None:
        weight = torch.ones(x.shape[2], device=x.device)
    return weight, torch.zeros_like(weight) if bias is None else bias, norm.eps
