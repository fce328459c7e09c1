"""Clips for training and testing, in an order and with choices that depend on nothing but the seed."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

import numpy as np

from alt_fast.data.annotations import Video
from alt_fast.data.augment import ClipRecord, draw_record, view_record
from alt_fast.data.config import ClipSpec
from alt_fast.data.rng import Stream, generator

NO_LABEL = -1
_ATTEMPTS = 50  # videos tried for one training clip before giving up

Key = tuple[int, int]


class TrainClips:
    """Augmented clips by (epoch, index).

    An unreadable video is replaced by another one, drawn from the seed. When one replacement after the other fails, the
    clip has NO_LABEL: the list as a whole is wrong.
    """

    def __init__(self, videos: Sequence[Video], spec: ClipSpec, seed: int) -> None:
        self.videos, self.spec, self.seed = videos, spec, seed

    def record(self, key: Key) -> ClipRecord:
        """What happens to the clip, whichever video it is taken from."""
        return draw_record(generator(self.seed, Stream.CLIP, *key), self.spec.augment, self.spec.num_frames)

    def candidates(self, key: Key) -> Iterator[int]:
        """Indices of the videos to take the clip from, in the order of trying."""
        replacement = generator(self.seed, Stream.REPLACE, *key)
        yield key[1]
        for _ in range(_ATTEMPTS - 1):
            yield int(replacement.integers(len(self.videos)))

    def label_without_video(self, key: Key) -> int:
        """The label of an all-zero clip."""
        return NO_LABEL


class EvalClips:
    """Clips by (index, view): `crops` places in the picture times `clips` moments in the video.

    An unreadable video gives all-zero clips with its label, and its failure: nothing is dropped.
    """

    def __init__(self, videos: Sequence[Video], spec: ClipSpec, crops: int = 1, clips: int = 1) -> None:
        self.videos, self.spec, self.crops, self.clips = videos, spec, crops, clips

    @property
    def views(self) -> int:
        return self.crops * self.clips

    def keys(self) -> list[Key]:
        """Every view of every video, in order."""
        return [(index, view) for index in range(len(self.videos)) for view in range(self.views)]

    def record(self, key: Key) -> ClipRecord:
        """The view."""
        clip, crop = divmod(key[1], self.crops)
        return view_record(self.spec.augment, self.spec.num_frames, (crop, self.crops), (clip, self.clips))

    def candidates(self, key: Key) -> Iterator[int]:
        """The video itself."""
        yield key[0]

    def label_without_video(self, key: Key) -> int:
        """The video's own."""
        return self.videos[key[0]].label


Clips = TrainClips | EvalClips


class KeyBatches(Protocol):
    """Keys by batch, and how many batches there are."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sequence[Key]]: ...


class EpochSampler:
    """Keys (epoch, index) of a range of steps, each step's batch in `parts` of equal size.

    Every epoch is a new permutation, without its last, incomplete batch. Of `world` processes, each takes its own share
    of every part; together they take what one would.
    """

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, steps: range, parts: int = 1, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size % (parts * world):
            raise ValueError(f"batch size {batch_size} does not divide by {parts} parts of {world} processes")
        self.num_samples, self.batch_size, self.seed, self.steps = num_samples, batch_size, seed, steps
        self.parts, self.rank, self.world = parts, rank, world

    def __len__(self) -> int:
        return len(self.steps) * self.parts

    def __iter__(self) -> Iterator[list[Key]]:
        order, order_epoch = np.empty(0, np.int64), -1
        for step in self.steps:
            epoch, batch = divmod(step, self.num_samples // self.batch_size)
            if epoch != order_epoch:
                order = generator(self.seed, Stream.SHUFFLE, epoch).permutation(self.num_samples)
                order_epoch = epoch
            indices = order[batch * self.batch_size :][: self.batch_size]
            for part in indices.reshape(self.parts, self.world, -1)[:, self.rank]:
                yield [(epoch, int(index)) for index in part]


def batched(keys: Sequence[Key], size: int) -> Iterator[list[Key]]:
    """Keys in lists of `size`, the last one shorter."""
    rest = iter(keys)
    while batch := list(islice(rest, size)):
        yield batch
