"""Clips by PyAV and torch: any machine, any codec of FFmpeg's."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alt_fast.data.augment import color_map, cut, paint
from alt_fast.data.batch import Batch, PendingClip, Request
from alt_fast.data.dataset import Clips
from alt_fast.data.decode import decode_clip


@dataclass(frozen=True)
class TorchReader:
    """Decodes with PyAV and cuts with torch: arrays of a clip, uint8 [T, 3, H, W], and its colour map."""

    clips: Clips

    def __call__(self, request: Request) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        spec, record = self.clips.spec, self.clips.record(request.key)
        if request.video is None:
            return np.zeros((spec.num_frames, 3, *spec.size), np.uint8), color_map(record).numpy()
        frames = decode_clip(self.clips.videos[request.video].path, record.positions)
        return cut(record, frames, spec.size).numpy(), color_map(record).numpy()


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
