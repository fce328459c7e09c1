"""Clips by NVIDIA's DALI: one graph decodes, crops, resizes, flips, colours and normalises whole batches.

On a GPU, NVDEC decodes and everything stays there; on a CPU the same graph decodes VP8, VP9 and MJPEG. What DALI cannot
decode, would decode wrong, or would hold too many large frames of, comes decoded by PyAV into the same graph. Imported
only where DALI is installed.
"""

import gc
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, math, pipeline_def, types

from alt_fast.data.augment import MEAN_STD, color_map, crop_box, crop_picture, cut_picture
from alt_fast.data.batch import Batch, PendingClip, Request
from alt_fast.data.config import ClipSpec
from alt_fast.data.dataset import Clips
from alt_fast.data.decode import VideoIndex, decode_frames, index_video, is_turned
from alt_fast.data.storage import locate

CPU_CODECS = ("vp8", "vp9", "mjpeg")
GPU_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg")
_EIGHT_BITS = ("yuv420p", "yuvj420p")
_BT601 = (2, 5, 6)  # unspecified (taken for BT.601), BT.470BG, SMPTE 170M, as FFmpeg numbers them
_MAX_BYTES = 256 * 2**20  # DALI wants the whole file in memory
_MAX_WHOLE = 64 * 2**20  # bytes of a clip's frames, which DALI decodes whole, of three batches at a time
_AHEAD = 2  # batches that the graph works on while one is used
_FAILURES = 3  # of the graph, after which it is given decoded frames only

_NO_BYTES = np.zeros(1, np.uint8)
_NO_FRAMES = np.zeros((1, 1, 1, 3), np.uint8)


class DaliItem(NamedTuple):
    """One clip, as the graph's inputs by their names, and the way it takes.

    encoded: bytes of the file, with the `frames` to decode; or decoded: uint8 RGB [T, H, W, 3], cropped already, and
    of large frames shrunk and flipped too. box: top, left, height, width. color: [T, 3, 4].
    """

    encoded: NDArray[np.uint8]
    frames: NDArray[np.int32]
    decoded: NDArray[np.uint8]
    is_encoded: NDArray[np.bool_]
    box: NDArray[np.int32]
    flip: NDArray[np.int32]
    color: NDArray[np.float32]
    way: str


@dataclass(frozen=True)
class DaliReader:
    """Indexes a file, and decodes it where DALI would not."""

    clips: Clips
    gpu: bool

    def __call__(self, request: Request) -> DaliItem:
        spec, record = self.clips.spec, self.clips.record(request.key)
        numbers = [0] * spec.num_frames
        encoded, decoded, flip, way = _NO_BYTES, _NO_FRAMES, record.flip, "no video"
        if request.video is None:
            decoded = np.zeros((spec.num_frames, 16, 16, 3), np.uint8)
        else:
            path = self.clips.videos[request.video].path
            index = index_video(path)
            numbers = index.frames_at(record.positions)
            large = 3 * spec.num_frames * index.height * index.width > _MAX_WHOLE
            cause = "DALI failed on it or on one beside it" if request.plain else reason_against(path, index, self.gpu)
            if cause is None and large:
                cause = f"whole frames of a clip are larger than {_MAX_WHOLE >> 20} MiB"
            if cause is None:
                encoded, way = locate(path).read(), f"decoded by DALI on a {'GPU' if self.gpu else 'CPU'}"
                box = crop_box(record, index.height, index.width)
            elif large:
                clip = decode_frames(path, index, numbers, partial(cut_picture, record, spec.size))
                decoded, flip, way = clip.transpose(0, 2, 3, 1), False, f"decoded by PyAV: {cause}"
            else:
                decoded = decode_frames(path, index, numbers, partial(crop_picture, record, axis=-1))
                way = f"decoded by PyAV: {cause}"
        if decoded is not _NO_FRAMES:
            box = (0, 0, *decoded.shape[1:3])
        return DaliItem(
            encoded,
            np.array(numbers, np.int32),
            np.ascontiguousarray(decoded),
            np.array(decoded is _NO_FRAMES),
            np.array(box, np.int32),
            np.array(flip, np.int32),
            color_map(record).numpy(),
            way,
        )


def reason_against(path: Any, index: VideoIndex, gpu: bool) -> str | None:
    """Why DALI should not decode this file; None when it can."""
    codecs = GPU_CODECS if gpu else CPU_CODECS
    if index.codec not in codecs:
        return f"DALI does not decode {index.codec} on a {'GPU' if gpu else 'CPU'}"
    if index.pixel_format not in _EIGHT_BITS:
        return f"DALI is not used for {index.pixel_format}"
    if not gpu and index.colorspace not in _BT601:
        return "DALI's CPU decoder takes every video for BT.601"
    if index.times is None:
        return "its packets carry no times"
    if index.misdated:
        return "its frames may come with each other's times"
    if index.first:
        return "it begins before its first keyframe"
    if locate(path).size > _MAX_BYTES:
        return f"larger than {_MAX_BYTES >> 20} MiB"
    if is_turned(path):
        return "DALI does not turn what was filmed upright"
    return None


@pipeline_def(enable_conditionals=True, exec_dynamic=True)
def clip_graph(spec: ClipSpec, gpu: bool) -> Any:
    """The graph from DaliItem's inputs to fp32 [T, 3, H, W]."""
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    frames = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
    decoded = fn.external_source(name="decoded", dtype=types.UINT8, ndim=4, layout="FHWC")
    is_encoded = fn.external_source(name="is_encoded", dtype=types.BOOL, ndim=0)
    box = fn.external_source(name="box", dtype=types.INT32, ndim=1)
    flip = fn.external_source(name="flip", dtype=types.INT32, ndim=0)
    color = fn.external_source(name="color", dtype=types.FLOAT, ndim=3)
    if is_encoded:
        video = fn.decoders.video(encoded, frames=frames, device="mixed" if gpu else "cpu")
    else:
        video = decoded.gpu() if gpu else decoded
    video = fn.slice(video, start=box[:2], shape=box[2:], axes=(1, 2))
    height, width = spec.size
    video = fn.resize(video, resize_y=height, resize_x=width, interp_type=types.INTERP_LINEAR, antialias=True)
    video = math.clamp(fn.coord_transform(video, MT=fn.per_frame(color)), 0.0, 1.0)
    mean, std = MEAN_STD[spec.augment.normalize]
    return fn.crop_mirror_normalize(
        video, mirror=flip, mean=list(mean), std=list(std), dtype=types.FLOAT, output_layout="FCHW"
    )


class DaliBackend:
    """Runs the graph over batches, a few ahead of the one in use. threads: CPU threads of the graph."""

    def __init__(self, clips: Clips, device: torch.device, dtype: torch.dtype, threads: int) -> None:
        self.counts: Counter[str] = Counter()
        self._clips, self._device, self._dtype, self._threads = clips, device, dtype, threads
        self._gpu = device.type == "cuda"
        self._failures = 0

    def try_out(self) -> None:
        """Run the graph on an empty clip. Raises RuntimeError where it does not run."""
        graph = self._build(1)
        self._feed(graph, [self.reader()(Request((0, 0), None))])
        self._outputs(graph)
        del graph
        gc.collect()  # as in batches

    def reader(self) -> DaliReader:
        return DaliReader(self._clips, self._gpu)

    def batches(self, pending: Iterable[list[PendingClip]]) -> Iterator[Batch]:
        try:
            yield from self._run(pending)
        finally:
            gc.collect()  # graphs lie in reference cycles, and crash a forked process that would collect them

    def _run(self, pending: Iterable[list[PendingClip]]) -> Iterator[Batch]:
        graph = None
        running: deque[list[PendingClip]] = deque()
        for batch in pending:
            if graph is None or len(batch) > graph.max_batch_size:
                while running:
                    graph, out = self._finish(graph, running)
                    yield out
                graph = self._build(len(batch))
            self._start(graph, batch)
            running.append(batch)
            if len(running) > _AHEAD:
                graph, out = self._finish(graph, running)
                yield out
        while running:
            graph, out = self._finish(graph, running)
            yield out

    def _build(self, batch_size: int) -> Any:
        index = torch.cuda.current_device() if self._gpu and self._device.index is None else self._device.index
        graph = clip_graph(
            self._clips.spec,
            self._gpu,
            batch_size=batch_size,
            num_threads=self._threads,
            device_id=index if self._gpu else None,
            prefetch_queue_depth=1,
        )
        graph.build()
        return graph

    def _start(self, graph: Any, batch: list[PendingClip]) -> None:
        if self._failures >= _FAILURES:
            self._ask_for_plain(batch)
        self._feed(graph, [clip.item() for clip in batch])

    def _ask_for_plain(self, batch: list[PendingClip]) -> None:
        for clip in batch:
            if clip.item().is_encoded:
                clip.ask_for_plain()

    def _feed(self, graph: Any, items: list[DaliItem]) -> None:
        for name in DaliItem._fields[:-1]:
            graph.feed_input(name, [getattr(item, name) for item in items])
        graph.schedule_run()

    def _finish(self, graph: Any, running: deque[list[PendingClip]]) -> tuple[Any, Batch]:
        """Wait for the oldest batch. When the graph breaks, a new one takes over, fed by PyAV."""
        try:
            outputs = self._outputs(graph)
        except RuntimeError:
            self._failures += 1
            graph = self._build(graph.max_batch_size)
            for batch in running:
                self._ask_for_plain(batch)
            for batch in running:
                self._start(graph, batch)
            outputs = self._outputs(graph)
        batch = running.popleft()
        self.counts.update(clip.item().way for clip in batch)
        label = torch.tensor([clip.label for clip in batch]).to(self._device, non_blocking=True)
        return graph, Batch(outputs, label, [failure for clip in batch for failure in clip.failures])

    def _outputs(self, graph: Any) -> torch.Tensor:
        stream = torch.cuda.current_stream(self._device) if self._gpu else None
        (outputs,) = graph.outputs(cuda_stream=stream)
        return torch.utils.dlpack.from_dlpack(outputs.as_tensor()).to(self._dtype)
