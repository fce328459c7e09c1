"""Decode chosen frames of a video file with PyAV, without trusting its header."""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]

_MISSING_FRAMES = 2  # packets at the end that may give no frame, as in some AVIs
_MISSING_SHARE = 0.1  # of the promised duration: more than this missing is a truncated file


class VideoError(ValueError):
    """A video that cannot be used. `path` names the file, `cause` says why."""

    def __init__(self, path: str | Path, cause: str) -> None:
        super().__init__(str(path), cause)
        self.path, self.cause = str(path), cause

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}"


def decode_clip(path: str | Path, positions: Sequence[float]) -> Frames:
    """Frames at relative positions of a video.

    positions: ascending numbers in [0, 1); position p of a video of n frames is frame floor(p * n).
    Returns uint8 RGB [len(positions), H, W, 3], upright (rotation metadata applied).

    The packets are listed first (demuxing decodes nothing), so frame counts are true whatever the header says; then
    only the groups of pictures that hold a wanted frame are decoded. Raises VideoError for files that are missing,
    empty, not video, truncated or broken.
    """
    path = str(path)
    if not Path(path).is_file():
        raise VideoError(path, "not a regular file" if Path(path).exists() else "no such file")
    if Path(path).stat().st_size == 0:
        raise VideoError(path, "empty file (0 bytes)")
    try:
        index = _list_frames(path)
        wanted = [min(int(position * index.count), index.count - 1) for position in positions]
        return _decode(path, index, wanted)
    except av.error.FFmpegError as e:
        raise VideoError(path, f"truncated, damaged or no video ({e.strerror})") from e


@dataclass(frozen=True)
class _Index:
    """What demuxing tells: the number of frames and, when packets carry them, their presentation times, ascending."""

    count: int
    times: list[int] | None
    keyframes: list[int]


def _open(path: str) -> "av.container.InputContainer":
    return av.open(path, metadata_errors="ignore")


def _list_frames(path: str) -> _Index:
    with _open(path) as container:
        if not container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no"
            raise VideoError(path, f"no video stream (it has {kinds} streams)")
        video = container.streams.video[0]
        count, times, keyframes = 0, [], []
        end = 0.0  # of any stream, in seconds
        for packet in container.demux():  # packets are not kept: together they are as large as the file
            if packet.size and packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index == video.index and packet.size and not packet.is_discard:
                count += 1
                if packet.pts is not None:
                    times.append(packet.pts)
                    if packet.is_keyframe:
                        keyframes.append(packet.pts)
        if count == 0:
            raise VideoError(path, "the video stream holds no frames")
        if len(times) < count:
            return _Index(count, None, [])  # old AVIs, raw streams: frames can only be counted
        times.sort()
        _check_duration(path, container, video, times, end)
        return _Index(count, times, sorted(keyframes))


def _check_duration(
    path: str,
    container: "av.container.InputContainer",
    video: "av.video.stream.VideoStream",
    times: list[int],
    end: float,
) -> None:
    """Refuse a file that ends long before its header says it does, be it the video's or the whole file's."""
    if len(times) == 1:
        return  # one frame may stand for any time
    tick = float(video.time_base or 0)  # seconds
    step = (times[-1] - times[0]) / (len(times) - 1) * tick
    if video.duration is not None:
        promised, found = video.duration * tick, (times[-1] - times[0]) * tick + step
    elif container.duration is not None:
        start = (container.start_time or 0) / av.time_base
        promised, found = container.duration / av.time_base, max(end, times[-1] * tick + step) - start
    else:
        return
    if promised - found > _MISSING_SHARE * promised + _MISSING_FRAMES * step:
        raise VideoError(path, f"truncated: the header promises {promised:.2f} s, the file holds {found:.2f} s")


def _decode(path: str, index: _Index, wanted: list[int]) -> Frames:
    """The frames numbered `wanted` (ascending, repeats allowed)."""
    pictures = _decode_seeking(path, index, sorted(set(wanted))) if index.times else None
    if pictures is None:
        pictures = _decode_linear(path, index, sorted(set(wanted)))
    sizes = sorted({f"{picture.shape[1]} x {picture.shape[0]}" for picture in pictures.values()})
    if len(sizes) > 1:
        raise VideoError(path, f"its frames differ in size ({', '.join(sizes)})")
    return np.stack([pictures[number] for number in wanted])


def _decode_seeking(path: str, index: _Index, wanted: list[int]) -> dict[int, Frames] | None:
    """Decode from the keyframe before each wanted frame; None when the container does not seek exactly."""
    assert index.times is not None
    pictures: dict[int, Frames] = {}
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # loader workers are the parallelism
        frames: Iterator[av.VideoFrame] = container.decode(stream)
        reached = index.times[0] - 1  # presentation time of the last decoded frame
        for number in wanted:
            target = index.times[number]
            place = bisect.bisect_right(index.keyframes, target)
            key = index.keyframes[place - 1] if place else index.times[0]
            sought = key > max(reached, index.times[0])
            if sought:
                container.seek(key, stream=stream)
                frames = container.decode(stream)
            for frame in frames:
                if frame.pts is None or frame.pts > target or (sought and frame.pts > key):
                    return None
                sought, reached = False, frame.pts
                if reached == target:
                    pictures[number] = _upright(frame)
                    break
            else:
                return None
    return pictures


def _decode_linear(path: str, index: _Index, wanted: list[int]) -> dict[int, Frames]:
    """Decode from the start; each wanted number or time takes the first frame that is not before it.

    Packets may give no frame (hidden frames of VP8, the last ones of some AVIs): at the end the last frame stands in.
    """
    order: Sequence[int] = index.times or range(index.count)
    pictures: dict[int, Frames] = {}
    pending = list(wanted)
    frame, decoded = None, 0
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for number, frame in enumerate(container.decode(stream)):
            place = frame.pts if index.times else number
            if place is None:
                raise VideoError(path, "its frames carry no times")
            decoded = bisect.bisect_right(order, place)
            while pending and order[pending[0]] <= place:
                pictures[pending.pop(0)] = _upright(frame)
            if not pending:
                return pictures
    if frame is None or index.count - decoded > _MISSING_FRAMES:
        raise VideoError(path, f"broken: decoding ends at frame {decoded} of {index.count}")
    return pictures | dict.fromkeys(pending, _upright(frame))


def _upright(frame: av.VideoFrame) -> Frames:
    """RGB [H, W, 3] with the display rotation (degrees, counter-clockwise) applied."""
    return np.rot90(frame.to_ndarray(format="rgb24"), (frame.rotation // 90) % 4)
