"""What the ops ask of their arguments, and whether values are looked at."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import debug_unwrap

from alt_fast_kernels.launch import is_intercepted

_check_values: bool | None = None  # None: on a CPU


@contextmanager
def check_values(enabled: bool = True) -> Iterator[None]:
    """Check values (finite keys, no negative sizes) on every device, at a synchronization per op, or on none.

    Outside this context they are checked on a CPU. On a GPU reading them would stall the stream: there a key that is
    not finite merges last, and only when nothing else is left. It holds for the whole process.
    """
    global _check_values
    before, _check_values = _check_values, enabled
    try:
        yield
    finally:
        _check_values = before


def may_read_values(x: Tensor) -> bool:
    """Return whether x's values can be looked at here: real, outside of tracing and vmap, without stalling a GPU."""
    if torch.compiler.is_compiling() or is_intercepted():
        return False
    wanted = x.is_cpu if _check_values is None else _check_values and not x.is_meta
    return wanted and is_plain(x)


def is_plain(x: Tensor) -> bool:
    """Return whether x is a tensor itself, that outlives what runs: not traced, nor inside vmap or grad."""
    return type(x) is Tensor and debug_unwrap(x, recurse=False) is x


def check_size(size: Tensor, like: Tensor) -> None:
    """Raise unless size suits the tokens `like` [B, N, ...].

    It must be [B, N], fp32 or fp64, on the same device, without gradient, and >= 0 where values may be read.
    """
    if size.shape != like.shape[:2]:
        raise ValueError(f"size must be {tuple(like.shape[:2])}, one number per token, got shape {tuple(size.shape)}")
    if size.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"size must be fp32 (or fp64), got {size.dtype}: half precision cannot count past 2048")
    if size.requires_grad:
        raise ValueError("size must not require grad: token sizes are counts")
    check_device("size", size, like)
    if may_read_values(size) and not bool((size >= 0).all()):
        raise ValueError(f"size must be >= 0 everywhere, got a minimum of {size.min().item()}")


def check_device(name: str, x: Tensor, like: Tensor) -> None:
    """Raise ValueError unless x lies on the device of `like`."""
    if x.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {x.device}")
