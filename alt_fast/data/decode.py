"""Decode chosen frames of a video file with PyAV, without trusting its header."""

import bisect
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from alt_fast.data.storage import StorageError, locate
from alt_fast.errors import AltFastError

_EXACT_COLORS = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""As DALI converts; FFmpeg's default darkens by one level of 255."""

Frames = NDArray[np.uint8]

_MISSING_FRAMES = 2  # packets at the end that may give no frame, as in some AVIs
_MISSING_SHARE = 0.1  # of the promised duration: more than this missing is a truncated file


class VideoError(AltFastError, ValueError):
    """A video that cannot be used. `path` names the file, `cause` says why."""

    def __init__(self, path: str | Path, cause: str) -> None:
        super().__init__(str(path), cause)
        self.path, self.cause = str(path), cause

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}"


@dataclass(frozen=True)
class VideoIndex:
    """What demuxing alone tells about a video.

    count: frames. times, keyframes: presentation times of all frames and of the keyframes, ascending; None and empty
    where packets carry none. codec, pixel_format, container: FFmpeg's names; colorspace: its number. rate: frames per
    second, None where the header has none.
    """

    count: int
    times: Sequence[int] | None
    keyframes: Sequence[int]
    codec: str
    pixel_format: str
    colorspace: int
    container: str
    width: int
    height: int
    rate: float | None

    def frames_at(self, positions: Sequence[float]) -> list[int]:
        """Numbers of the frames at relative positions in [0, 1)."""
        return [min(int(position * self.count), self.count - 1) for position in positions]


def decode_clip(path: str | Path, positions: Sequence[float]) -> Frames:
    """Frames at relative positions of a video.

    path: a file, or a member of a tar archive as ARCHIVE.tar/NAME. positions: ascending numbers in [0, 1); position p
    of a video of n frames is frame floor(p * n). Returns uint8 RGB [len(positions), H, W, 3], upright; planar inside.

    The packets are listed first (demuxing decodes nothing), so frame counts are true whatever the header says; then
    only the groups of pictures that hold a wanted frame are decoded. Raises VideoError for files that are missing,
    empty, not video, truncated or broken.
    """
    with _errors_of(path), _open(path) as container:
        index = _list_frames(path, container)
        return _decode(path, container, index, index.frames_at(positions))


def index_video(path: str | Path) -> VideoIndex:
    """List the packets of a video. Raises VideoError."""
    with _errors_of(path), _open(path) as container:
        return _list_frames(path, container)


def decode_frames(path: str | Path, index: VideoIndex, wanted: Sequence[int]) -> Frames:
    """The frames numbered `wanted` (ascending, repeats allowed), as `decode_clip` returns them. Raises VideoError."""
    with _errors_of(path), _open(path) as container:
        return _decode(path, container, index, wanted)


def display_rotation(path: str | Path) -> int:
    """Degrees that the first picture is to be turned by, counter-clockwise. Raises VideoError."""
    with _errors_of(path), _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        return next((frame.rotation for frame in container.decode(stream)), 0)


@contextmanager
def _errors_of(path: str | Path) -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as e:
        raise VideoError(path, f"truncated, damaged or no video ({e.strerror})") from e
    except StorageError as e:
        raise VideoError(path, str(e)) from e


def video_stream(path: str | Path, container: "av.container.InputContainer") -> "av.video.stream.VideoStream":
    """Return the first video stream of what was opened as `path`. Raises VideoError for none that can be decoded."""
    if not container.streams.video:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no"
        raise VideoError(path, f"no video stream (it has {kinds} streams)")
    video = container.streams.video[0]
    if video.codec_context is None:
        raise VideoError(path, "FFmpeg, as PyAV brings it, has no decoder for its video codec")
    return video


def _open(path: str | Path) -> "av.container.InputContainer":
    return av.open(locate(path).url(), metadata_errors="ignore")


def _list_frames(path: str | Path, container: "av.container.InputContainer") -> VideoIndex:
    video = video_stream(path, container)
    count, times, keyframes = 0, array("q"), array("q")
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
    timed = len(times) == count  # old AVIs, raw streams: frames can only be counted
    ordered = _sorted(times)
    if timed:
        _check_duration(path, container, video, ordered, end)
    codec = video.codec_context
    return VideoIndex(
        count,
        ordered if timed else None,
        _sorted(keyframes) if timed else array("q"),
        codec.codec.canonical_name,
        codec.pix_fmt or "unknown",
        codec.colorspace,
        container.format.name,
        codec.width,
        codec.height,
        float(video.average_rate) if video.average_rate else None,
    )


def _sorted(times: "array[int]") -> "array[int]":
    """Ascending; without a Python object for each of the frames of a long video."""
    return array("q", np.sort(np.frombuffer(times, np.int64)).tobytes())


def _check_duration(
    path: str | Path,
    container: "av.container.InputContainer",
    video: "av.video.stream.VideoStream",
    times: Sequence[int],
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


def _decode(
    path: str | Path, container: "av.container.InputContainer", index: VideoIndex, wanted: Sequence[int]
) -> Frames:
    distinct = sorted(set(wanted))
    pictures = None if index.times is None else _decode_seeking(container, index.times, index.keyframes, distinct)
    if pictures is None:
        pictures = _decode_linear(path, index, distinct)
    sizes = sorted({f"{picture.shape[2]} x {picture.shape[1]}" for picture in pictures.values()})
    if len(sizes) > 1:
        raise VideoError(path, f"its frames differ in size ({', '.join(sizes)})")
    return np.stack([pictures[number] for number in wanted]).transpose(0, 2, 3, 1)


def _decode_seeking(
    container: "av.container.InputContainer", times: Sequence[int], keyframes: Sequence[int], wanted: Sequence[int]
) -> dict[int, Frames] | None:
    """Decode each wanted frame from the keyframe before it; None when the container does not seek exactly."""

    def start(number: int) -> int:
        place = bisect.bisect_right(keyframes, times[number])
        return keyframes[place - 1] if place else times[0]

    stream = container.streams.video[0]
    stream.thread_type = "NONE"  # loader workers are the parallelism
    convert = VideoReformatter()
    pictures: dict[int, Frames] = {}
    for key, group in groupby(wanted, start):
        numbers = {times[number]: number for number in group}
        container.seek(key, stream=stream)
        for frame in _decode_only(container, stream, key, set(numbers)):
            if frame.pts in numbers:
                pictures[numbers[frame.pts]] = upright(frame, convert)
    return pictures if len(pictures) == len(wanted) else None


def _decode_only(
    container: "av.container.InputContainer", stream: "av.video.stream.VideoStream", key: int, needed: set[int]
) -> Iterator[av.VideoFrame]:
    """The frames shown at the times `needed`, among others, after a seek to `key`; none when the seek missed it.

    Frames that are neither needed nor referred to by others are not decoded, nor is what comes after the last one.
    """
    for number, packet in enumerate(container.demux(stream)):
        if number == 0 and (packet.pts is None or packet.pts > key):
            return
        stream.codec_context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in needed else "NONREF"
        yield from packet.decode()
        needed.discard(packet.pts)
        if not needed:
            yield from stream.decode(None)  # what it holds back
            return


def _decode_linear(path: str | Path, index: VideoIndex, wanted: Sequence[int]) -> dict[int, Frames]:
    """Decode from the start; each wanted number or time takes the first frame that is not before it.

    Packets may give no frame (hidden frames of VP8, the last ones of some AVIs): at the end the last frame stands in.
    """
    order: Sequence[int] = range(index.count) if index.times is None else index.times
    pictures: dict[int, Frames] = {}
    pending = list(wanted)
    convert = VideoReformatter()
    frame, decoded = None, 0
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for number, frame in enumerate(container.decode(stream)):
            place = number if index.times is None else frame.pts
            if place is None:
                raise VideoError(path, "its frames carry no times")
            decoded = bisect.bisect_right(order, place)
            while pending and order[pending[0]] <= place:
                pictures[pending.pop(0)] = upright(frame, convert)
            if not pending:
                return pictures
    if frame is None or index.count - decoded > _MISSING_FRAMES:
        raise VideoError(path, f"broken: decoding ends at frame {decoded} of {index.count}")
    return pictures | dict.fromkeys(pending, upright(frame, convert))


def upright(frame: av.VideoFrame, convert: VideoReformatter) -> Frames:
    """Return a frame as uint8 RGB [3, H, W], turned as its display rotation (degrees, counter-clockwise) says."""
    if frame.height % 2:  # FFmpeg's planar conversion rounds odd heights otherwise
        packed = convert.reformat(frame, format="rgb24", interpolation=_EXACT_COLORS)
        picture = packed.to_ndarray().transpose(2, 0, 1)
    else:  # at twice the speed
        planar = convert.reformat(frame, format="gbrp", interpolation=_EXACT_COLORS)
        rows = [np.asarray(memoryview(planar.planes[i])).reshape(planar.height, -1) for i in (2, 0, 1)]
        picture = np.stack([row[:, : planar.width] for row in rows])
    return np.rot90(picture, (frame.rotation // 90) % 4, axes=(1, 2))
