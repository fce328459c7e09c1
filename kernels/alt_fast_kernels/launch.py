"""A kernel launch as a value: the same object is run, interpreted, or compiled for a GPU that is not here."""

from dataclasses import dataclass
from typing import Any

import torch

from alt_fast_kernels.interpreter import mend


@dataclass(frozen=True)
class Launch:
    """One kernel launch: what runs, how often, on what."""

    kernel: Any  # triton.JITFunction, or its interpreted stand-in
    grid: int
    args: tuple[Any, ...]
    options: dict[str, Any]  # the kernel's constexpr parameters, and Triton's num_warps, num_stages, maxnreg

    def run(self) -> None:
        """Enqueue it on the device of its first argument; an empty grid is nothing to do."""
        if type(self.kernel).__name__ == "InterpretedFunction":
            mend()
        if self.grid:
            with torch.cuda.device_of(self.args[0]):  # Triton launches on the current device
                self.kernel[(self.grid,)](*self.args, **self.options)


def padded(width: int) -> int:
    """Return the smallest tile width that holds `width` columns: a power of two, at least 16 (Triton's tl.dot)."""
    return max(16, 1 << (width - 1).bit_length())
