"""Which frames of a video a clip takes: TSN's segments (Wang et al., ECCV 2016)."""

import numpy as np

Positions = tuple[float, ...]
"""Relative positions of frames, ascending in [0, 1): see `frame_number`."""


def frame_number(position: float, count: int) -> int:
    """Return which frame of `count` a position is. A product a few digits below a whole number, as of 0.35, is that."""
    return min(int(position * count + 1e-6), count - 1)


def segment_positions(num_segments: int, rng: np.random.Generator | None = None, offset: float = 0.5) -> Positions:
    """One position in each of `num_segments` equal parts: random, or without a generator at `offset` of each.

    Relative positions, so that they can be drawn before the file is opened; short videos repeat frames.
    """
    offsets = np.full(num_segments, offset) if rng is None else rng.random(num_segments)
    return tuple(((np.arange(num_segments) + offsets) / num_segments).tolist())
