"""Which implementation runs, and what every op does under autocast and vmap."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

Backend = Literal["auto", "reference", "triton"]

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_backend: Backend = "auto"  # a ContextVar would be safe across threads, but torch.compile cannot trace its get()


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Run the ops inside by "reference" (PyTorch), by "triton" (kernels), or by "auto", the default.

    "auto" takes the kernel for fp32, fp16 and bf16 tensors on a GPU and the reference for all else. "triton" on CPU
    tensors works under Triton's interpreter only (TRITON_INTERPRET=1). The choice holds for the whole process: every
    thread sees it, those that run the backward pass included.
    """
    global _backend
    if name not in ("auto", "reference", "triton"):
        raise ValueError(f"backend must be auto, reference or triton, got {name!r}")
    before, _backend = _backend, name
    try:
        yield
    finally:
        _backend = before


def takes_kernel(x: Tensor) -> bool:
    """Return whether the op on x runs as a Triton kernel."""
    if _backend == "auto":
        wanted = x.is_cuda and x.dtype in KERNEL_DTYPES and find_spec("triton") is not None
        return wanted and not torch.onnx.is_in_onnx_export()  # ONNX knows PyTorch's operators only
    if _backend == "triton" and x.dtype not in KERNEL_DTYPES:
        raise TypeError(f"the Triton kernels take fp32, fp16 and bf16, got {x.dtype}")
    return _backend == "triton"


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
