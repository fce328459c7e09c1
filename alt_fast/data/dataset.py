"""Clips for training and testing, in an order and with choices that depend on nothing but the seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alt_fast.data.annotations import Video
from alt_fast.data.augment import AugmentConfig, apply, center_record, draw_record
from alt_fast.data.decode import VideoError, decode_clip
from alt_fast.data.rng import Stream, generator

NO_LABEL = -1
_ATTEMPTS = 50  # replacements tried for one unreadable video before giving up


class Failure(NamedTuple):
    """An unreadable video."""

    path: str
    cause: str


class Batch(NamedTuple):
    """video [B, T, 3, H, W] fp32 normalised, label [B] int64, unreadable videos met on the way."""

    video: Tensor
    label: Tensor
    failures: list[Failure]


class Sample(NamedTuple):
    """One element of a batch."""

    video: Tensor
    label: int
    failures: list[Failure]


@dataclass(frozen=True)
class ClipSpec:
    """What a clip looks like: frames, height and width in pixels, augmentation."""

    num_frames: int
    size: tuple[int, int]
    augment: AugmentConfig


class TrainClips(Dataset[Sample]):
    """Augmented clips by (epoch, index). An unreadable video is replaced by another one, drawn from the seed.

    When one replacement after the other fails, the sample has NO_LABEL: the list as a whole is wrong.
    """

    def __init__(self, videos: Sequence[Video], spec: ClipSpec, seed: int) -> None:
        self.videos, self.spec, self.seed = videos, spec, seed

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        rng = generator(self.seed, Stream.CLIP, epoch, index)
        record = draw_record(rng, self.spec.augment, self.spec.num_frames)
        replacement = generator(self.seed, Stream.REPLACE, epoch, index)
        failures: list[Failure] = []
        for _ in range(_ATTEMPTS):
            path, label = self.videos[index]
            try:
                frames = decode_clip(path, record.positions)
            except VideoError as e:
                failures.append(Failure(e.path, e.cause))
                index = int(replacement.integers(len(self.videos)))
                continue
            return Sample(apply(record, frames, self.spec.size, self.spec.augment), label, failures)
        return Sample(torch.zeros(self.spec.num_frames, 3, *self.spec.size), NO_LABEL, failures)


class EvalClips(Dataset[Sample]):
    """Center clips by index. An unreadable video gives an all-zero clip and its failure: nothing is dropped."""

    def __init__(self, videos: Sequence[Video], spec: ClipSpec) -> None:
        self.videos, self.spec = videos, spec

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.videos[index]
        record = center_record(self.spec.augment, self.spec.num_frames)
        try:
            frames = decode_clip(path, record.positions)
        except VideoError as e:
            empty = torch.zeros(self.spec.num_frames, 3, *self.spec.size)
            return Sample(empty, label, [Failure(e.path, e.cause)])
        return Sample(apply(record, frames, self.spec.size, self.spec.augment), label, [])


class EpochSampler:
    """Keys (epoch, index) of a range of steps, each step's batch in `parts` of equal size.

    Every epoch is a new permutation, without its last, incomplete batch.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, steps: range, parts: int = 1) -> None:
        self.num_samples, self.batch_size, self.seed, self.steps = num_samples, batch_size, seed, steps
        self.parts = parts

    def __len__(self) -> int:
        return len(self.steps) * self.parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, order_epoch = np.empty(0, np.int64), -1
        for step in self.steps:
            epoch, batch = divmod(step, self.num_samples // self.batch_size)
            if epoch != order_epoch:
                order = generator(self.seed, Stream.SHUFFLE, epoch).permutation(self.num_samples)
                order_epoch = epoch
            indices = order[batch * self.batch_size :][: self.batch_size]
            for part in indices.reshape(self.parts, -1):
                yield [(epoch, int(index)) for index in part]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples."""
    return Batch(
        torch.stack([sample.video for sample in samples]),
        torch.tensor([sample.label for sample in samples]),
        [failure for sample in samples for failure in sample.failures],
    )


def train_loader(clips: TrainClips, batch_size: int, steps: range, parts: int, workers: int) -> "DataLoader[Any]":
    """The batches of `steps` (counted over all epochs), each in `parts`."""
    sampler = EpochSampler(len(clips.videos), batch_size, clips.seed, steps, parts)
    return _loader(clips, workers, batch_sampler=sampler)


def eval_loader(clips: EvalClips, batch_size: int, workers: int) -> "DataLoader[Any]":
    """Every clip once, in order."""
    return _loader(clips, workers, batch_size=batch_size)


def _loader(clips: "TrainClips | EvalClips", workers: int, **options: Any) -> "DataLoader[Any]":
    return DataLoader(
        clips,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        **options,
    )
