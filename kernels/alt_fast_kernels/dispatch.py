"""Which implementation runs, and what every op does under autocast."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

Backend = Literal["auto", "reference", "triton"]
AttentionBackend = Literal["auto", "triton", "sdpa", "flex", "xformers"]

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HAS_TRITON = find_spec("triton") is not None

# ContextVars would be safe across threads, but torch.compile cannot trace their get().
_backend: Backend = "auto"
_attention: AttentionBackend = "auto"
_known: dict[torch.device, bool] = {}  # what `_runs_kernels` found


@contextmanager
def use_backend(name: Backend | None = None, *, attention: AttentionBackend | None = None) -> Iterator[None]:
    """Run the ops inside by "reference" (PyTorch), by "triton" (kernels), or by "auto", the default.

    "auto" takes the kernel for fp32, fp16 and bf16 tensors on a GPU (NVIDIA's from Ampere on) and the reference for all
    else. "triton" on CPU tensors works under Triton's interpreter only (TRITON_INTERPRET=1).
    attention: for proportional attention alone "triton", "sdpa" (PyTorch's scaled_dot_product_attention), "flex"
    (FlexAttention) or "xformers", which raise ValueError saying why where they cannot run; "auto" does as the ops.
    What is not given stays as it is. The choice holds for the whole process: every thread sees it, those that run the
    backward pass included.
    """
    global _backend, _attention
    if name not in (None, *get_args(Backend)):
        raise ValueError(f"backend must be auto, reference or triton, got {name!r}")
    if attention not in (None, *get_args(AttentionBackend)):
        raise ValueError(f"attention must be auto, triton, sdpa, flex or xformers, got {attention!r}")
    before = _backend, _attention
    _backend, _attention = name or _backend, attention or _attention
    try:
        yield
    finally:
        _backend, _attention = before


def attention_backend() -> AttentionBackend:
    """Return what `use_backend(attention=...)` chose."""
    return _attention


def takes_kernel(x: Tensor) -> bool:
    """Return whether the op on x runs as a Triton kernel."""
    if _backend == "auto":
        wanted = x.is_cuda and x.dtype in KERNEL_DTYPES and HAS_TRITON and _runs_kernels(x.device)
        # ONNX knows PyTorch's operators only. Every export traces, and asking about export takes longer than that.
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
        return wanted and not (traced and torch.onnx.is_in_onnx_export())
    if _backend == "triton" and x.dtype not in KERNEL_DTYPES:
        raise TypeError(f"the Triton kernels take fp32, fp16 and bf16, got {x.dtype}")
    return _backend == "triton"


def _runs_kernels(device: torch.device) -> bool:
    """Whether a GPU is of Ampere or later, or AMD's: Turing has less shared memory than kernels take, and no bf16.

    Of tensors that are traced for a GPU where there is none, it is taken to be one.
    """
    if device in _known:
        return _known[device]
    if not torch.cuda.is_available():
        return True
    runs = torch.cuda.get_device_properties(device).major >= 8
    if not torch.compiler.is_compiling():
        _known[device] = runs
    return runs


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return autocast's dtype for x's device, None outside of autocast."""
    if x.is_cuda:
        device = "cuda"  # PyTorch finds literals faster than the string that x.device.type makes anew
    elif x.is_cpu:
        device = "cpu"
    else:
        device = x.device.type
        if not torch.amp.is_autocast_available(device):  # "meta" has none
            return None
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def to_autocast_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Inside autocast, the tensors in its dtype, as PyTorch does for attention and matmul; else as they are."""
    dtype = autocast_dtype(tensors[0])
    if dtype is None:
        return tensors
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context that switches autocast off on x's device; none where it is off already.

    torch.export makes a graph of its own of every context that it traces. So what it traced outside of autocast is a
    program for outside of it.
    """
    return nullcontext() if autocast_dtype(x) is None else torch.autocast(x.device.type, enabled=False)
