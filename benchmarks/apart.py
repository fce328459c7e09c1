"""A call in a process of its own, and how much memory that took. It imports nothing, so that memory is the call's."""

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of a module in a new process; returns what it returns, or raises what it raises.

    That process starts others as this one does, although it was spawned itself.
    """
    spawning, method = multiprocessing.get_context("spawn"), multiprocessing.get_start_method()
    with ProcessPoolExecutor(1, spawning, initializer=start_others_by, initargs=(method,)) as pool:
        return pool.submit(function, *arguments).result()


def start_others_by(method: str) -> None:
    """Start processes by this method from now on."""
    multiprocessing.set_start_method(method, force=True)


def peak_bytes() -> int:
    """Resident memory that this process has taken at most. Linux.

    Not `ru_maxrss`: there a process begins with the peak of the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def children_peak_bytes() -> int:
    """Likewise of the largest process that this one has forked and seen end, with what they share; 0 for none."""
    return 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
