"""Batches of clips on the device, from processes that decode: in order, whatever a file or a process does.

backend, why = open_backend("auto", clips, device)
for batch in Loader(clips, keys, backend, Loading(workers=8)):
    model(batch.video)
"""

import importlib.util
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alt_fast.data.augment import color_map, cut, paint
from alt_fast.data.dataset import Clips, Key
from alt_fast.data.decode import VideoError, decode_clip
from alt_fast.data.workers import LostError, Workers

LoaderName = Literal["auto", "dali", "torch"]


class Failure(NamedTuple):
    """An unreadable video."""

    path: str
    cause: str


class Batch(NamedTuple):
    """video [B, T, 3, H, W] normalised and label [B] int64, both on the device; unreadable videos met on the way."""

    video: Tensor
    label: Tensor
    failures: list[Failure]


@dataclass(frozen=True)
class Loading:
    """How clips get from files to the device.

    loader: who crops, resizes and colours: "dali", "torch", or "auto", DALI where it and a GPU are there. workers:
    decoding processes; 0 decodes in the process that asks. timeout: seconds that one video may take.
    """

    loader: LoaderName = "auto"
    workers: int = 2
    timeout: float = 60.0


class Request(NamedTuple):
    """A clip to read: its key, the index of its video (None for a clip of zeros), and whether by PyAV only."""

    key: Key
    video: int | None
    plain: bool = False


class PendingClip:
    """A clip under way, asked for from its first candidate on.

    A video that cannot be decoded, hangs or kills its process is a failure, and the next candidate's turn comes. lost:
    videos that hung or killed, too dear to try again; shared by all clips.
    """

    def __init__(self, key: Key, clips: Clips, pool: Workers, lost: dict[int, str]) -> None:
        self.failures: list[Failure] = []
        self._key, self._clips, self._pool, self._lost = key, clips, pool, lost
        self._candidates = clips.candidates(key)
        self._ask()

    def _ask(self) -> None:
        """Start reading the next candidate, or zeros when none is left."""
        for index in self._candidates:
            if index not in self._lost:
                self._submit(Request(self._key, index))
                return
            self._fail(index, self._lost[index])
        self._submit(Request(self._key, None))

    def _submit(self, request: Request) -> None:
        self._request, self._future = request, self._pool.submit(request)

    def _fail(self, index: int | None, cause: str) -> None:
        assert index is not None, cause  # zeros cannot fail
        self.failures.append(Failure(str(self._clips.videos[index].path), cause))

    def item(self) -> Any:
        """Wait for what the reader returns."""
        while True:
            try:
                return self._future.result()
            except VideoError as e:
                self._fail(self._request.video, e.cause)
            except LostError as e:
                self._fail(self._request.video, str(e))
                self._lost[self._request.video] = str(e)  # type: ignore[index]
            self._ask()

    def ask_for_plain(self) -> None:
        """Read it again, from the same video, by PyAV."""
        self._submit(self._request._replace(plain=True))

    @property
    def label(self) -> int:
        """The class; known once the item is."""
        video = self._request.video
        return self._clips.label_without_video(self._key) if video is None else self._clips.videos[video].label


class Backend(Protocol):
    """Turns what processes read into batches. counts: clips by the way they took."""

    counts: Counter[str]

    def reader(self) -> Callable[[Request], Any]:
        """Reads one clip in a process; picklable. Raises VideoError."""
        ...

    def batches(self, pending: Iterable[list[PendingClip]]) -> Iterator[Batch]:
        """The batches, in order."""
        ...


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
    """PyAV and torch: any machine, any codec of FFmpeg's. Colours are applied on the device."""

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


def open_backend(
    name: LoaderName, clips: Clips, device: torch.device, dtype: torch.dtype = torch.float32, threads: int = 1
) -> tuple[Backend, str]:
    """The backend that gives `dtype` on `device`, and why it is this one. threads: DALI's.

    "auto" tries DALI out before it takes it. Raises ValueError for an unknown name, and when DALI is asked for and not
    installed.
    """
    if name not in get_args(LoaderName):
        raise ValueError(f"loader must be one of {', '.join(get_args(LoaderName))}, got {name!r}")
    installed = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
    if name == "torch":
        return TorchBackend(clips, device, dtype), "torch, as asked for"
    if name == "auto" and device.type != "cuda":
        return TorchBackend(clips, device, dtype), "torch, since DALI decodes most codecs on a GPU only"
    if name == "auto" and not installed:
        return TorchBackend(
            clips, device, dtype
        ), "torch, since DALI is not installed (pip install nvidia-dali-cuda120)"
    if not installed:
        raise ValueError("loader 'dali' was asked for, but DALI is not installed: pip install nvidia-dali-cuda120")
    try:
        from alt_fast.data.dali import DaliBackend  # heavy, and optional

        backend = DaliBackend(clips, device, dtype, threads)
        if name == "auto":
            backend.try_out()
    except (ImportError, OSError, RuntimeError) as e:
        if name == "dali":
            raise
        return TorchBackend(clips, device, dtype), f"torch, since DALI does not run here ({e})"
    return backend, "dali, as asked for" if name == "dali" else "dali, on the GPU"


class Loader:
    """Batches of the clips with the given keys, a batch for each list of them.

    Order and content do not depend on the number of processes.
    """

    def __init__(self, clips: Clips, keys: Iterable[Sequence[Key]], backend: Backend, loading: Loading) -> None:
        self._clips, self._keys, self._backend, self._loading = clips, keys, backend, loading

    def __len__(self) -> int:
        return len(self._keys)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        loading, lost = self._loading, dict[int, str]()
        with Workers(self._backend.reader(), loading.workers, loading.timeout) as pool:

            def pending() -> Iterator[list[PendingClip]]:
                started: deque[list[PendingClip]] = deque()
                for keys in self._keys:
                    started.append([PendingClip(key, self._clips, pool, lost) for key in keys])
                    if len(started) > 2 and sum(map(len, started)) > 4 * loading.workers:
                        yield started.popleft()
                yield from started

            yield from self._backend.batches(pending())
