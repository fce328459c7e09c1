"""Which implementation runs, whether values are checked, and what every op does under autocast and vmap."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

Backend = Literal["auto", "reference", "triton"]

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_backend: Backend = "auto"
_check_values = False


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Run the ops inside by "reference" (PyTorch), by "triton" (kernels), or by "auto", the default.

    "auto" takes the kernel for fp32, fp16 and bf16 tensors on a GPU and the reference for all else. "triton" on CPU
    tensors works under Triton's interpreter only (TRITON_INTERPRET=1).
    """
    global _backend
    if name not in ("auto", "reference", "triton"):
        raise ValueError(f"backend must be auto, reference or triton, got {name!r}")
    before, _backend = _backend, name
    try:
        yield
    finally:
        _backend = before


@contextmanager
def check_values() -> Iterator[None]:
    """Check values (finite keys, positive sizes) on every device, at the price of a synchronization per op.

    On a CPU they are always checked. On a GPU reading them would stall the stream, so outside this context a key that
    is not finite merges last, and only when nothing else is left.
    """
    global _check_values
    before, _check_values = _check_values, True
    try:
        yield
    finally:
        _check_values = before


def takes_kernel(x: Tensor) -> bool:
    """Whether the op on x runs as a Triton kernel."""
    if _backend == "auto":
        wanted = x.is_cuda and x.dtype in KERNEL_DTYPES and find_spec("triton") is not None
        return wanted and not torch.onnx.is_in_onnx_export()  # ONNX knows PyTorch's operators only
    if _backend == "triton" and x.dtype not in KERNEL_DTYPES:
        raise TypeError(f"the Triton kernels take fp32, fp16 and bf16, got {x.dtype}")
    return _backend == "triton"


def may_read_values(x: Tensor) -> bool:
    """Whether x's values can be looked at here: real, outside of tracing and vmap, and without stalling a GPU."""
    traced = torch.compiler.is_compiling() or type(x) is not Tensor
    if traced or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return False
    return x.device.type == "cpu" or _check_values


def check_size(size: Tensor, like: Tensor) -> None:
    """Raise unless size suits the tokens `like` [B, N, ...].

    It must be [B, N], fp32 or fp64, on the same device, without gradient, and > 0 where values may be read.
    """
    if size.shape != like.shape[:2]:
        raise ValueError(f"size must be {tuple(like.shape[:2])}, one number per token, got shape {tuple(size.shape)}")
    if size.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"size must be fp32 (or fp64), got {size.dtype}: half precision cannot count past 2048")
    if size.requires_grad:
        raise ValueError("size must not require grad: token sizes are counts")
    check_device("size", size, like)
    if may_read_values(size) and not bool((size > 0).all()):
        raise ValueError(f"size must be > 0 everywhere, got a minimum of {size.min().item()}")


def check_device(name: str, x: Tensor, like: Tensor) -> None:
    """Raise ValueError unless x lies on the device of `like`."""
    if x.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {x.device}")


def to_autocast_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Inside autocast, the tensors in its dtype, as PyTorch does for attention and matmul; else as they are."""
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)
    return tensors


def fold_vmap(op: Callable[..., Any], per_image: int) -> Callable[..., Any]:
    """A vmap rule for an op whose first `per_image` arguments are tensors [B, ...] (or None) with results [B, ...].

    The mapped dimension folds into the batch; batched arguments beyond those (weights, say) are refused.
    """

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        if any(dim is not None for dim in in_dims[per_image:]):
            raise NotImplementedError(f"{op} can be mapped over its {per_image} per-image tensors only")
        folded = [
            x
            if x is None
            else (x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
            for x, dim in zip(args[:per_image], in_dims, strict=False)
        ]
        out = op(*folded, *args[per_image:])

        def unfold(x: Tensor) -> Tensor:
            return x.unflatten(0, (info.batch_size, -1))

        return (unfold(out), 0) if isinstance(out, Tensor) else (tuple(map(unfold, out)), (0,) * len(out))

    return rule
