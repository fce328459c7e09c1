"""Scores over time as segments: a label begins where it is sure, goes on while it is likely, and lasts some time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alt_fast.errors import ArgumentError
from alt_fast.report.timeline import Segment


@dataclass(frozen=True)
class Hysteresis:
    """When a label begins and ends.

    Args:
        enter: probability from which a label begins.
        leave: probability below which it ends; between the two it goes on, so that one weak moment does not cut it.
        min_length: seconds; what lasts shorter is not told.
    """

    enter: float = 0.5
    leave: float = 0.3
    min_length: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.leave <= self.enter <= 1:
            raise ArgumentError(f"leave and enter must be 0 < leave <= enter <= 1, got {self.leave} and {self.enter}")
        if not self.min_length >= 0:
            raise ArgumentError(f"min_length must be >= 0, got {self.min_length}")


@dataclass
class _Open:
    """A segment that goes on: when it began, its steps so far, the sum and the highest of their probabilities."""

    start: float
    steps: int = 0
    total: float = 0.0
    peak: float = 0.0


class Segmenter:
    """Takes the probabilities of one step after the other; what it keeps does not grow with their number."""

    def __init__(self, labels: Sequence[str], rule: Hysteresis) -> None:
        self.labels, self.rule = labels, rule
        self.segments: list[Segment] = []
        self._open: dict[int, _Open] = {}

    def step(self, start: float, probabilities: NDArray[np.float32]) -> None:
        """Take a step from `start` seconds on. probabilities: [I], of every label."""
        for label in [label for label in self._open if probabilities[label] < self.rule.leave]:
            self._close(label, start)
        for label in np.flatnonzero(probabilities >= self.rule.enter).tolist():
            self._open.setdefault(label, _Open(start))
        for label, segment in self._open.items():
            score = float(probabilities[label])
            segment.steps += 1
            segment.total += score
            segment.peak = max(segment.peak, score)

    def stop(self, end: float) -> None:
        """End all that goes on: at the end, or before a gap."""
        for label in list(self._open):
            self._close(label, end)

    def _close(self, label: int, end: float) -> None:
        segment = self._open.pop(label)
        if end - segment.start >= self.rule.min_length - 1e-6:  # times are multiples of steps, rounded
            mean = segment.total / segment.steps
            self.segments.append(Segment(segment.start, end, self.labels[label], mean, segment.peak))
