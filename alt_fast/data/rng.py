"""The one source of randomness: a counter-based generator keyed by what it draws for.

The same (seed, stream, epoch, sample) gives the same numbers in any process, in any order, after any restart.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What the numbers are for; streams never overlap."""

    CLIP = 1  # frame positions, crop, flip and colour of a clip
    SHUFFLE = 2  # order of the samples in an epoch
    REPLACE = 3  # which sample stands in for an unreadable one
    STEP = 4  # noise of a training step
    INIT = 5  # initial weights
    CAPTION = 6  # pretraining images and captions
    VIDEO = 7  # Motion Shapes videos
    FEW_SHOT = 8  # training videos of a class
    UNSEEN = 9  # classes to test zero-shot
    PROBE = 10  # batches of a linear probe
    MIX = 11  # mixing of a batch
    SPLIT = 12  # videos held out for testing


def generator(seed: int, stream: Stream, epoch: int = 0, sample: int = 0) -> np.random.Generator:
    """Numbers for one purpose. seed is in [0, 2**128), epoch and sample are in [0, 2**64)."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, int(stream), epoch, sample]))


def integer(seed: int, stream: Stream, epoch: int = 0, sample: int = 0) -> int:
    """One number in [0, 2**31), to seed other generators with."""
    return int(generator(seed, stream, epoch, sample).integers(2**31))
