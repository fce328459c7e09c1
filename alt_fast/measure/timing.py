"""Contestants timed side by side: every round runs each once, in turn, so that a slow moment of the machine meets all.

On a GPU a contestant is captured into a CUDA graph and timed by events around its replay, with the L2 cache overwritten
in between; on a CPU by the clock around a call.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

T = TypeVar("T")
Step = Callable[[], object]

WARM_UP = 3  # calls on a GPU before a capture, or before the first round


@contextmanager
def every_compilation_counts() -> Iterator[None]:
    """Inside, what is called compiled is.

    Elsewhere a function's ninth compilation, in all models together, runs it as it is; here the 65th is an error.
    """
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        yield


def in_turn(contestants: Iterable[T], rounds: int) -> Iterator[T]:
    """Yield each once a round, each round another one first: one may leave the next a worse cache."""
    order = list(contestants)
    for number in range(rounds if order else 0):
        first = number % len(order)
        yield from order[first:] + order[:first]


def check_writes(outputs: object, replay: Step) -> None:
    """Raise AssertionError unless a replay writes its outputs anew: they are filled with NaN before it.

    A graph captured on the wrong stream, or after its work was done, would replay nothing, in no time.
    """
    tensors = [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.is_floating_point()]
    with torch.inference_mode():  # which alone may write to outputs made in it
        for x in tensors:
            x.fill_(torch.nan)
        replay()
    if not all(bool(x.isfinite().any()) for x in tensors if x.numel()):
        raise AssertionError("a replay leaves its outputs unwritten")


def first_line(error: Exception) -> str:
    """Name an error, shortly."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


class OnCPU:
    """A contestant on a CPU."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.peak_bytes: int | None = None  # not measured
        step()  # compiles, and fills caches

    def time(self) -> float:
        """Seconds of one call."""
        start = time.perf_counter()
        self.step()
        return time.perf_counter() - start


class OnGPU:
    """A contestant on a GPU, as a CUDA graph or call by call.

    peak_bytes: memory of one eager call beyond what was allocated before.
    """

    def __init__(self, step: Step, graph: bool, warm_up: int) -> None:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(warm_up):
                step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        self.peak_bytes: int | None = torch.cuda.max_memory_allocated() - before
        gc.collect()
        self.run: Step = step
        if graph:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                self.kept = step()  # outputs stay where the graph writes them
            self.run = captured.replay
            check_writes(self.kept, captured.replay)
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self.flush = torch.empty(2 * l2_bytes, dtype=torch.int8, device="cuda")

    def time(self) -> float:
        """Seconds of one replay or call, on the device; waiting for the host's launches counts."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        start.record()
        self.run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3


@dataclass
class Race:
    """Times of contestants by round. seconds: per contestant. skipped: reasons, by the name of who did not start."""

    contestants: dict[str, OnCPU | OnGPU] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, step: Step, device: str, graph: bool = True, warm_up: int = WARM_UP) -> None:
        """Warm a contestant up (and capture it). One that cannot run is named among the skipped, with its error."""
        try:
            self.contestants[name] = OnGPU(step, graph, warm_up) if device == "cuda" else OnCPU(step)
        except Exception as error:  # contestants are other people's code
            self.skipped[name] = first_line(error)
        else:
            self.seconds[name] = []

    def run(self, name: str) -> None:
        """One timing of one contestant."""
        self.seconds[name].append(self.contestants[name].time())

    def ratio(self, slow: str, fast: str) -> tuple[float, float, float]:
        """How many times faster `fast` is: the quartiles, low, median and high, of the rounds' own ratios."""
        rounds = [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]
        low, middle, high = statistics.quantiles(rounds, n=4, method="inclusive")
        return low, middle, high
