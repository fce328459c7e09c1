"""A second lane beside attention: matching needs the keys alone, and few images leave room on a GPU for both.

    with lane(x):
        branch, key = ...                    # through proportional_attention, which opens the lane: its keys are ready
        plan = aside(lambda: match(key, r))  # on a stream of its own, beside attention and whatever followed it

Only where a CUDA graph is captured: call by call the host's own time hides all that could be saved. What runs aside
must be done with its inputs, and its result is ready, when `aside` returns.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
from torch import Tensor

from alt_fast_kernels.match.plan import MergePlan

FEW = 16
"""Images at most: those that `match` plans in one launch, a program for each."""


class Lane:
    """A stream beside the current one, of one thread, on which work goes on from where it was last opened."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream, self.thread, self.is_open = stream, threading.get_ident(), False

    @property
    def current(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.stream.device)

    def open(self) -> None:
        """Let the stream go on from here."""
        self.stream.wait_stream(self.current)
        self.is_open = True

    def close(self) -> None:
        """Wait for the stream: what was opened must be, or a graph cannot be captured."""
        if self.is_open:
            self.current.wait_stream(self.stream)
            self.is_open = False


_lane: Lane | None = None


def lane(x: Tensor) -> AbstractContextManager[object]:
    """A context in which attention of tokens x [B, ...] opens a lane, closed at its end: if x is captured, and few."""
    if torch.compiler.is_compiling() or not x.is_cuda or len(x) > FEW or not torch.cuda.is_current_stream_capturing():
        return nullcontext()
    return _laid(Lane(_stream(x.device)))


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextmanager
def _laid(found: Lane) -> Iterator[None]:
    global _lane
    before, _lane = _lane, found
    try:
        yield
        found.close()
    finally:
        _lane = before


def open_lane() -> None:
    """Open the lane that there is."""
    if _lane is not None and _lane.thread == threading.get_ident():
        _lane.open()


def aside(call: Callable[[], MergePlan]) -> MergePlan:
    """Return a plan, made on the open lane if there is one."""
    found = _lane
    if found is None or found.thread != threading.get_ident() or not found.is_open:
        return call()
    with torch.cuda.stream(found.stream):
        plan = call()
    found.close()
    for x in plan:
        if isinstance(x, Tensor):  # made on one stream, read on the other
            x.record_stream(found.current)
    return plan
