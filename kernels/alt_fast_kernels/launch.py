"""A kernel launch as a value, and the checked-in launch configurations.

No autotuning at run time: tokens shrink from layer to layer, and a search per length would never end.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from alt_fast_kernels.interpreter import mend_bf16_dot

Arch = str
"""sm_80 (and newer up to 89), sm_90 (and newer), sm_100, or gfx942 for AMD."""


@dataclass(frozen=True)
class Launch:
    """One kernel launch: what runs, how often, on what."""

    kernel: Any  # triton.JITFunction, or its interpreted stand-in
    grid: int
    args: tuple[Any, ...]
    options: dict[str, Any]  # constexpr parameters, num_warps, num_stages

    def run(self) -> None:
        """Enqueue it on the device of its first argument; an empty grid is nothing to do."""
        if type(self.kernel).__name__ == "InterpretedFunction":
            mend_bf16_dot()
        if self.grid:
            with torch.cuda.device_of(self.args[0]):  # Triton launches on the current device
                self.kernel[(self.grid,)](*self.args, **self.options)


@dataclass(frozen=True)
class Config:
    """Tile sizes and Triton's compile options. block_m: rows a program owns; block_n: rows it streams over."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    maxnreg: int | None = None


def compile_options(arch: Arch, num_warps: int, num_stages: int = 1, maxnreg: int | None = None) -> dict[str, int]:
    """Triton's options for one kernel.

    maxnreg: registers a thread may take on NVIDIA. Left alone, ptxas spills some to reach the next step of occupancy.
    """
    options = {"num_warps": num_warps, "num_stages": num_stages}
    return options if maxnreg is None or arch == "gfx942" else {**options, "maxnreg": maxnreg}


@cache
def arch_of(device: torch.device) -> Arch:
    """The row of the tables below that a device uses; CPU tensors (interpreter) use sm_80's."""
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return {8: "sm_80", 9: "sm_90"}.get(major, "sm_100" if major > 9 else "sm_80")


def padded(width: int) -> int:
    """The smallest tile width that holds `width` columns: a power of two, at least 16 (Triton's tl.dot)."""
    return max(16, 1 << (width - 1).bit_length())
