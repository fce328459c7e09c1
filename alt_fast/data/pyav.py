"""Clips by PyAV and torch: any machine, any codec of FFmpeg's."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alt_fast.data.augment import ClipRecord, color_map, cut_picture, paint
from alt_fast.data.batch import Batch, PendingClip, Request
from alt_fast.data.dataset import Clips
from alt_fast.data.decode import decode_clip


def read_clip(path: str | Path, record: ClipRecord, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode a clip, cut and shrunk a frame at a time: `augment.cut` of `decode_clip`, in the memory of one frame.

    Returns uint8 [T, 3, *size]. Raises VideoError.
    """
    return decode_clip(path, record.positions, partial(cut_picture, record, size))


@dataclass(frozen=True)
class TorchReader:
    """Decodes with PyAV and cuts with torch: arrays of a clip, uint8 [T, 3, H, W], and its colour map."""

    clips: Clips

    def __call__(self, request: Request) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        spec, record = self.clips.spec, self.clips.record(request.key)
        if request.video is None:
            return np.zeros((spec.num_frames, 3, *spec.size), np.uint8), color_map(record).numpy()
        pixels = read_clip(self.clips.videos[request.video].path, record, spec.size)
        return pixels, color_map(record).numpy()


class TorchBackend:
    """PyAV decodes, torch does the rest; colours are applied on the device."""

    def __init__(self, clips: Clips, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.counts: Counter[str] = Counter()
        self._clips, self._device, self._dtype = clips, device, dtype

    def reader(self) -> TorchReader:
        return TorchReader(self._clips)

    def batches(self, pending: Iterable[list[PendingClip]]) -> Iterator[Batch]:
        for batch in pending:
            items = [clip.item() for clip in batch]
            self.counts["decoded by PyAV"] += len(batch)
            if self._device.type == "cuda":
                video = self._paint(items)
            else:  # the cores are decoding: one thread, on one clip at a time, which stays in the cache
                with one_thread():
                    video = torch.cat([self._paint([item]) for item in items])
            label = torch.tensor([clip.label for clip in batch])
            yield Batch(video, self._move(label), [failure for clip in batch for failure in clip.failures])

    def _paint(self, items: list[tuple[NDArray[np.uint8], NDArray[np.float32]]]) -> Tensor:
        pixels, maps = (self._move(torch.from_numpy(np.stack(arrays))) for arrays in zip(*items, strict=True))
        return paint(pixels, maps, self._clips.spec.augment, self._dtype)

    def _move(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch's operations on a CPU in this thread alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
