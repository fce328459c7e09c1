"""A kernel launch as a value: the same object is run, interpreted, or compiled for a GPU that is not here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from alt_fast_kernels.configs import Arch, configured_for
from alt_fast_kernels.interpreter import mend

FP_FUSION = True
"""A product and a sum are one instruction (FMA). So they are by default up to Triton 3.9, which warns of the next."""

_instead: Callable[["Launch"], object] | None = None


class Launch(NamedTuple):
    """One kernel launch: what runs, how often, on what."""

    kernel: Any  # triton.JITFunction, or its interpreted stand-in
    grid: int
    args: tuple[Any, ...]
    options: dict[str, Any]  # the kernel's constexpr parameters, and Triton's num_warps, num_stages, maxnreg

    def run(self) -> None:
        """Enqueue it on the device of its first argument; an empty grid is nothing to do."""
        if _instead is not None:
            _instead(self)
            return
        x = self.args[0]
        if type(self.kernel).__name__ == "InterpretedFunction":
            mend()
        elif not x.is_cuda:
            raise ValueError(f"kernels take tensors on a GPU, or under TRITON_INTERPRET=1 on a CPU, not on {x.device}")
        if not self.grid:
            return
        launch = self.kernel[(self.grid,)]
        if x.is_cuda and x.get_device() != torch.cuda.current_device():  # Triton launches on the current device
            with torch.cuda.device_of(x):
                launch(*self.args, enable_fp_fusion=FP_FUSION, **self.options)
        else:
            launch(*self.args, enable_fp_fusion=FP_FUSION, **self.options)

    @property
    def name(self) -> str:
        """Of the kernel: "attention_fwd"."""
        return str(self.kernel.__name__).removesuffix("_kernel")

    def arguments(self) -> dict[str, Any]:
        """All of the kernel's parameters by name, and Triton's options."""
        return {**dict(zip(self.kernel.arg_names, self.args, strict=False)), **self.options}


@contextmanager
def intercepted(arch: Arch, function: Callable[[Launch], object]) -> Iterator[None]:
    """Hand the launches of the ops inside, configured for `arch`, to a function in place of running them.

    Results of the ops stay unfilled. It holds for the whole process.
    """
    global _instead
    before, _instead = _instead, function
    try:
        with configured_for(arch):
            yield
    finally:
        _instead = before


@contextmanager
def recording(arch: Arch) -> Iterator[list[Launch]]:
    """Collect the launches of the ops inside, configured for `arch`, in place of running them."""
    launches: list[Launch] = []

    def record(launch: Launch) -> None:
        launches.append(launch)
        for x in launch.args:
            if isinstance(x, torch.Tensor) and not x.is_floating_point():
                x.zero_()  # what is unfilled may be an index

    with intercepted(arch, record):
        yield launches


def is_intercepted() -> bool:
    """Return whether launches do not run, so that no value means anything."""
    return _instead is not None


def cdiv(a: int, b: int) -> int:
    """Return a / b rounded up; `triton.cdiv` takes a hundred times as long on the host."""
    return -(-a // b)


def padded(width: int) -> int:
    """Return the smallest tile width that holds `width` columns: a power of two, at least 16 (Triton's tl.dot)."""
    return max(16, 1 << (width - 1).bit_length())
