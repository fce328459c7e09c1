"""A second lane beside attention: matching needs the keys alone, and few images leave room on a GPU for both.

    with lane(x):
        branch, key = ...                         # through proportional_attention, which opens the lane with its keys
        plan = aside(key, lambda: match(key, r))  # on a stream of its own, beside attention and whatever followed it

Only where a CUDA graph is captured: call by call the host's own time hides all that could be saved. What runs aside may
read nothing that was made after attention began; so it does not, unless its key is what attention was given.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch.func import debug_unwrap

from alt_fast_kernels.match.plan import ONE_LAUNCH_IMAGES, MergePlan


class Lane:
    """A stream beside the current one, on which work goes on from where it was last opened.

    keys: those that were ready then, or what they are a view of; kept, so that nothing else takes their memory.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream
        self.keys: Tensor | None = None

    @property
    def current(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.stream.device)

    def open(self, keys: Tensor) -> None:
        """Let the stream go on from here, where these keys are ready."""
        self.stream.wait_stream(self.current)
        self.keys = keys

    def has(self, key: Tensor) -> bool:
        """Whether this key lies where those lie that the lane was opened with."""
        return self.keys is not None and _place(self.keys) == _place(key)

    def close(self) -> None:
        """Wait for the stream: what was opened must be, or a graph cannot be captured."""
        if self.keys is not None:
            self.current.wait_stream(self.stream)
            self.keys = None


def _place(x: Tensor) -> int:
    """Where the memory of x begins: a view's is that of what it is of."""
    return x.untyped_storage().data_ptr()


_laid = threading.local()
"""Of every thread the lane that it is in, as `lane`, and its `streams` by device: two captures may share none.
PyTorch has 32 streams for all of them, so that those of many threads are not always others."""


def lane(x: Tensor) -> AbstractContextManager[object]:
    """A context in which attention of tokens x [B, ...] opens a lane, closed at its end: if x is captured, and few."""
    if torch.compiler.is_compiling() or not x.is_cuda or not torch.cuda.is_current_stream_capturing():
        return nullcontext()
    if len(x) > ONE_LAUNCH_IMAGES or debug_unwrap(x, recurse=False) is not x:  # inside of vmap and grad
        return nullcontext()
    return _lay(Lane(_stream(x.device)))


def _stream(device: torch.device) -> torch.cuda.Stream:
    streams = _laid.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    found: torch.cuda.Stream = streams[device]
    return found


@contextmanager
def _lay(found: Lane) -> Iterator[None]:
    before, _laid.lane = _current(), found
    try:
        yield
        found.close()
    finally:
        _laid.lane = before


def _current() -> Lane | None:
    return None if torch.compiler.is_compiling() else getattr(_laid, "lane", None)


def open_lane(keys: Tensor) -> None:
    """Open the lane that there is, with keys that are ready, or what they are a view of."""
    if found := _current():
        found.open(keys)


def aside(key: Tensor, call: Callable[[], MergePlan]) -> MergePlan:
    """Return a plan of nothing but keys, made on the lane if it was opened with them."""
    found = _current()
    if found is None or not found.has(key):
        return call()
    with torch.cuda.stream(found.stream):
        plan = call()
    found.close()
    for x in plan:
        if isinstance(x, Tensor):  # made on one stream, read on the other
            x.record_stream(found.current)
    return plan
