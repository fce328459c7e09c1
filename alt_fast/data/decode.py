"""Decode chosen frames of a video file with PyAV, without trusting its header.

Whoever needs less than whole frames says what to take of each: the rest is gone before the next one is decoded.
"""

import bisect
import errno
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from alt_fast.data.sampling import frame_number
from alt_fast.data.storage import StorageError, locate
from alt_fast.errors import AltFastError

_EXACT_COLORS = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""As DALI converts; FFmpeg's default darkens by one level of 255."""

Frames = NDArray[np.uint8]
Planes = Sequence[Frames]
"""Red, green and blue of one picture, each [H, W]."""

Take = Callable[[Planes], Frames]
"""What is kept of a picture: a copy, since its planes are FFmpeg's memory."""

_HIDE_FRAMES = ("vp8", "vp9")  # a packet that shows none may have the time of the next
_TOLD_BY_PICTURES = ("mpeg1video", "mpeg2video")  # when frames of these are shown, by FFmpeg, outside ASF

_MISSING_FRAMES = 2  # packets at the end that may give no frame, as in some AVIs
_MISSING_SHARE = 0.1  # of the promised duration: more than this missing is a truncated file


OF_SYSTEM = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)
"""Errors that say nothing of what is in a file."""


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

    count: frames. times, keyframes: presentation times of all frames, and of keyframes shown or not; None and empty
    where packets carry none. tick: seconds of a unit of these, or of a frame where there are none; None where the
    header has no rate either. codec, pixel_format: FFmpeg's names; colorspace: its number. rate: frames per second,
    None where the header has none. misdated: whether a frame may come with the time of another.
    """

    count: int
    times: Sequence[int] | None
    keyframes: Sequence[int]
    tick: Fraction | None
    codec: str
    pixel_format: str
    colorspace: int
    width: int
    height: int
    rate: float | None
    misdated: bool = False

    @property
    def counted(self) -> bool:
        """Whether a frame is found by its place among those decoded, not by its time."""
        return self.times is None or self.misdated

    @property
    def first(self) -> int:
        """Number of the first keyframe. Files cut by stream copy show frames before it that refer to what is gone."""
        return bisect.bisect_left(self.times, self.keyframes[0]) if self.times and self.keyframes else 0

    def frames_at(self, positions: Sequence[float]) -> list[int]:
        """Numbers of the frames at relative positions in [0, 1); the first keyframe for those before it."""
        return [max(frame_number(position, self.count), self.first) for position in positions]

    def time_of(self, number: int) -> Fraction:
        """When a frame is shown, in seconds from the first one."""
        assert self.tick is not None
        return self.tick * (number if self.times is None else self.times[number] - self.times[0])

    def frame_at(self, time: Fraction) -> int:
        """Number of the frame that is shown at a time, in seconds from the first one; the first keyframe before it."""
        assert self.tick is not None
        ticks = int(time / self.tick)
        number = ticks if self.times is None else bisect.bisect_right(self.times, self.times[0] + ticks) - 1
        return max(min(number, self.count - 1), self.first)

    @property
    def duration(self) -> Fraction:
        """Seconds, the last frame shown as long as frames are on average."""
        return self.time_of(self.count - 1) * Fraction(self.count, max(1, self.count - 1))


def whole(planes: Planes) -> Frames:
    """All of a picture: RGB [H, W, 3], planar inside."""
    return np.stack(planes).transpose(1, 2, 0)


def decode_clip(path: str | Path, positions: Sequence[float], take: Take = whole) -> Frames:
    """Frames at relative positions of a video.

    path: a file, or a member of a tar archive as ARCHIVE.tar/NAME. positions: ascending numbers in [0, 1), of which
    `sampling.frame_number` tells the frames. take: of each upright frame. Returns what it took, stacked: by default
    uint8 RGB [len(positions), H, W, 3].

    The packets are listed first (demuxing decodes nothing), so frame counts are true whatever the header says; then
    only the groups of pictures that hold a wanted frame are decoded. Raises VideoError for files that are missing,
    empty, not video, truncated or broken.
    """
    with _errors_of(path), _open(path) as container:
        index = _list_frames(path, container)
        return _decode(path, container, index, index.frames_at(positions), take)


def index_video(path: str | Path) -> VideoIndex:
    """List the packets of a video. Raises VideoError."""
    with _errors_of(path), _open(path) as container:
        return _list_frames(path, container)


def open_video(path: str | Path) -> None:
    """Find a video in a file, and read none of it. Raises VideoError."""
    with _errors_of(path), _open(path) as container:
        video_stream(path, container)


def decode_frames(path: str | Path, index: VideoIndex, wanted: Sequence[int], take: Take = whole) -> Frames:
    """The frames numbered `wanted` (ascending, repeats allowed), as `decode_clip` returns them. Raises VideoError."""
    with _errors_of(path), _open(path) as container:
        return _decode(path, container, index, wanted, take)


@lru_cache(maxsize=2**17)  # a fifth of what decoding a clip takes, at every clip of every epoch
def is_turned(path: str | Path) -> bool:
    """Whether the first picture is to be turned or mirrored. Raises VideoError."""
    with _errors_of(path), _open(path) as container:
        stream = video_stream(path, container)
        stream.thread_type = "NONE"
        return any(any(turn_of(frame)) for frame in islice(container.decode(stream), 1))


@contextmanager
def _errors_of(path: str | Path) -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as e:
        kind = "cannot be read" if e.errno in OF_SYSTEM else "truncated, damaged or no video"
        raise VideoError(path, f"{kind} ({e.strerror})") from e
    except StorageError as e:
        raise VideoError(path, str(e)) from e


def video_stream(path: str | Path, container: "av.container.InputContainer") -> "av.video.stream.VideoStream":
    """Return the first video stream of what was opened as `path`. Raises VideoError for none that can be decoded."""
    moving = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not moving:  # a picture on the cover is none
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no"
        raise VideoError(path, f"no video stream (it has {kinds} streams)")
    video = moving[0]
    if video.codec_context is None:
        raise VideoError(path, "FFmpeg, as PyAV brings it, has no decoder for its video codec")
    return video


def _open(path: str | Path) -> "av.container.InputContainer":
    return av.open(locate(path).url(), metadata_errors="ignore")


def _list_frames(path: str | Path, container: "av.container.InputContainer") -> VideoIndex:
    video = video_stream(path, container)
    count, times, keyframes = 0, array("q"), array("q")
    end, shown = 0.0, 0  # of any stream, in seconds; of the video, in its ticks
    reached, joined = -math.inf, False  # when the packet before is decoded; whether that ever falls
    for packet in container.demux():  # packets are not kept: together they are as large as the file
        if packet.size and packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index != video.index or not packet.size:
            continue
        if packet.dts is not None:
            reached, joined = packet.dts, joined or packet.dts < reached
        if packet.is_keyframe and packet.pts is not None:
            keyframes.append(packet.pts)  # also one that is not shown: a cut in between is decoded from there
        if not packet.is_discard:
            count += 1
            if packet.pts is not None:
                times.append(packet.pts)
                shown = max(shown, packet.pts + (packet.duration or 0))
    if count == 0:
        raise VideoError(path, "the video stream holds no frames")
    # Old AVIs and raw streams carry no times; parts joined by `cat` begin anew: frames can only be counted.
    timed = len(times) == count and not joined
    ordered = _sorted(times)
    if timed:
        _check_duration(path, container, video, ordered, shown, end)
    codec = video.codec_context
    tick = video.time_base if timed else 1 / video.average_rate if video.average_rate else None
    return VideoIndex(
        count,
        ordered if timed else None,
        _sorted(keyframes) if timed else array("q"),
        tick,
        codec.codec.canonical_name,
        codec.pix_fmt or "unknown",
        codec.colorspace,
        codec.width,
        codec.height,
        float(video.average_rate) if video.average_rate else None,
        timed and _is_misdated(container.format.name, codec, times),
    )


def _is_misdated(container: str, codec: "av.video.codeccontext.VideoCodecContext", times: "array[int]") -> bool:
    """Whether frames may come with each other's times.

    AVI and ASF store times of decoding alone; of codecs that reorder frames FFmpeg guesses when they are shown, and
    where it takes the order of decoding for that, no time falls. Such guesses stay when the file is copied to another.
    After a seek in a program stream it gives pictures of MPEG-1 the times of their neighbours.
    container, codec: FFmpeg's. times: of the frames, as they lie in the file.
    """
    name, ticks = codec.codec.canonical_name, np.frombuffer(times, np.int64)
    doubled = name not in _HIDE_FRAMES and len(np.unique(ticks)) < len(ticks)
    reorders = codec.has_b_frames and (name not in _TOLD_BY_PICTURES or container == "asf")
    return doubled or (container, name) == ("mpeg", "mpeg1video") or (reorders and bool((np.diff(ticks) >= 0).all()))


def _sorted(times: "array[int]") -> "array[int]":
    """Ascending; without a Python object for each of the frames of a long video."""
    return array("q", np.sort(np.frombuffer(times, np.int64)).tobytes())


def _check_duration(
    path: str | Path,
    container: "av.container.InputContainer",
    video: "av.video.stream.VideoStream",
    times: Sequence[int],
    shown: int,
    end: float,
) -> None:
    """Refuse a file that ends long before its header says it does, be it the video's or the whole file's.

    shown: until when its last frame is, in ticks, as far as its packet says; it may be held for long.
    """
    if len(times) == 1:
        return  # one frame may stand for any time
    tick = float(video.time_base or 0)  # seconds
    # Of a cut that begins later than at 0 some headers say how long it is, others when it ends.
    step = (times[-1] - times[0]) / (len(times) - 1) * tick
    if video.duration is not None:
        start = min(0, times[0] * tick) if container.format.name == "asf" else times[0] * tick
        promised, found = video.duration * tick, max(times[-1] * tick + step, shown * tick) - start
    elif container.duration is not None:
        start = min(0, container.start_time or 0) / av.time_base
        promised, found = container.duration / av.time_base, max(end, times[-1] * tick + step) - start
    else:
        return
    if promised - found > _MISSING_SHARE * promised + _MISSING_FRAMES * step:
        raise VideoError(path, f"truncated: the header promises {promised:.2f} s, the file holds {found:.2f} s")


class _Pictures:
    """What was taken of wanted frames, by number, and the sizes that they had."""

    def __init__(self, take: Take) -> None:
        self.taken: dict[int, Frames] = {}
        self.sizes: set[str] = set()
        self._take, self._convert = take, VideoReformatter()
        self._turn: Turn | None = None

    def add(self, number: int, frame: av.VideoFrame) -> None:
        if self._turn is None:
            self._turn = turn_of(frame)
        planes = upright(frame, self._turn, self._convert)
        height, width = planes[0].shape
        self.sizes.add(f"{width} x {height}")
        self.taken[number] = self._take(planes)

    def stack(self, path: str | Path, wanted: Sequence[int]) -> Frames:
        """Return what was taken of these. Raises VideoError where sizes differ."""
        if len(self.sizes) > 1:
            raise VideoError(path, f"its frames differ in size ({', '.join(sorted(self.sizes))})")
        return np.stack([self.taken[number] for number in wanted])


def _decode(
    path: str | Path,
    container: "av.container.InputContainer",
    index: VideoIndex,
    wanted: Sequence[int],
    take: Take,
) -> Frames:
    distinct = sorted(set(wanted))
    pictures = _Pictures(take)
    if index.counted or not _Seeking(path, container, index).read(distinct, pictures):
        pictures = _Pictures(take)
        _Linear(path, index).read(distinct, pictures)
    return pictures.stack(path, wanted)


@dataclass
class _Needed:
    """Times that a decoder has still to reach, their last one, and whether it ends there."""

    times: set[int] = field(default_factory=set)
    last: int = 0
    ends: bool = True


class _Seeking:
    """Decodes each wanted frame from the keyframe before it, or on from where it is where that is nearer."""

    def __init__(self, path: str | Path, container: "av.container.InputContainer", index: VideoIndex) -> None:
        assert index.times is not None
        self._container, self._times, self._keyframes = container, index.times, index.keyframes
        self._stream = video_stream(path, container)
        self._stream.thread_type = "NONE"  # loader workers are the parallelism
        self._needed = _Needed()
        self._frames: Iterator[av.VideoFrame] = iter(())  # looks at `_needed`
        self._place: int | None = None  # time that it has come to; None where it does not go on

    def read(self, wanted: Sequence[int], pictures: _Pictures, goes_on: bool = False) -> bool:
        """Decode these frames, ascending; false where the container does not seek exactly.

        goes_on: whether another call may follow, with frames behind these.
        """
        for key, group in groupby(wanted, self._key):
            numbers = {self._times[number]: number for number in group}
            needed, last = self._needed, max(numbers)
            needed.times, needed.last, needed.ends = set(numbers), last, not goes_on or last < self._times[wanted[-1]]
            if self._place is None or not key <= self._place < min(numbers):
                try:
                    self._container.seek(key, stream=self._stream)
                except av.error.FFmpegError:  # raw MPEG-4, for one, has times and no seeking
                    return False
                self._frames = _decode_only(self._container, self._stream, key, needed)
            for frame in self._frames:
                if frame.pts in numbers:
                    pictures.add(numbers[frame.pts], frame)
                if goes_on and frame.pts is not None and frame.pts >= last:
                    break
            self._place = None if needed.ends else last
        return len(pictures.taken) == len(wanted)

    def _key(self, number: int) -> int:
        place = bisect.bisect_right(self._keyframes, self._times[number])
        return self._keyframes[place - 1] if place else self._times[0]


def _decode_only(
    container: "av.container.InputContainer", stream: "av.video.stream.VideoStream", key: int, needed: _Needed
) -> Iterator[av.VideoFrame]:
    """The frames that are `needed`, among others, after a seek to the time `key`; none when the seek missed it.

    Frames that are neither needed nor referred to by others are not decoded, nor is what comes after the last one, but
    where `needed` does not end there: it may change meanwhile.
    """
    for number, packet in enumerate(container.demux(stream)):
        if number == 0 and (packet.pts is None or packet.pts > key):
            return
        shown = packet.pts is None or packet.pts in needed.times or (packet.pts > needed.last and not needed.ends)
        stream.codec_context.skip_frame = "DEFAULT" if shown else "NONREF"
        yield from packet.decode()
        needed.times.discard(packet.pts)
        if needed.ends and not needed.times:
            yield from stream.decode(None)  # what it holds back
            return


class FrameReader:
    """Decodes frames of one video, call after call, in order: it goes on where it was unless a keyframe lies nearer.

    So a whole video costs one decoding, where its frames carry no times or hardly one is a keyframe too. Called with
    numbers, ascending; what it returns is `decode_frames`'. Who goes back pays for it. Picklable before its first call.
    """

    def __init__(self, path: str | Path, index: VideoIndex, take: Take = whole) -> None:
        self._path, self._index, self._take = path, index, take
        self._seeking: _Seeking | None = None
        self._linear: _Linear | None = None

    def __call__(self, wanted: Sequence[int]) -> Frames:
        """Return what was taken of these frames, stacked. Raises VideoError, after which the next call starts anew."""
        try:
            with _errors_of(self._path):
                return self._read(sorted(set(wanted)), wanted)
        except VideoError:
            self._seeking = self._linear = None
            raise

    def _read(self, distinct: Sequence[int], wanted: Sequence[int]) -> Frames:
        pictures = _Pictures(self._take)
        if not self._index.counted:
            self._seeking = self._seeking or _Seeking(self._path, _open(self._path), self._index)
            if self._seeking.read(distinct, pictures, goes_on=True):
                return pictures.stack(self._path, wanted)
            self._seeking, pictures = None, _Pictures(self._take)
        if self._linear is None or distinct[0] <= self._linear.last:
            self._linear = _Linear(self._path, self._index)
        self._linear.read(distinct, pictures)
        return pictures.stack(self._path, wanted)


class _Linear:
    """Decodes from the start; each wanted number or time takes the first frame that is not before it.

    Packets may give no frame (hidden frames of VP8, the last ones of some AVIs): at the end the last frame stands in.
    last: number of the frame that was wanted last.
    """

    def __init__(self, path: str | Path, index: VideoIndex) -> None:
        self.last = -1
        self._path, self._count, self._timed = path, index.count, not index.counted
        self._order: Sequence[int] = range(index.count) if index.times is None or index.counted else index.times
        container = _open(path)
        stream = video_stream(path, container)
        stream.thread_type = "NONE"
        self._frames = enumerate(container.decode(stream))
        self._frame: av.VideoFrame | None = None
        self._place: int | None = None  # number or time of the frame that came last

    def read(self, wanted: Sequence[int], pictures: _Pictures) -> None:
        """Decode these frames, ascending. Raises VideoError."""
        for number in wanted:
            while self._place is None or self._place < self._order[number]:
                if not self._advance():
                    break
            assert self._frame is not None
            pictures.add(number, self._frame)
            self.last = number

    def _advance(self) -> bool:
        """Decode the next frame; false at an end where the last one may stand in."""
        number, frame = next(self._frames, (-1, None))
        if frame is None:
            decoded = 0 if self._place is None else bisect.bisect_right(self._order, self._place)
            if self._frame is None or self._count - decoded > _MISSING_FRAMES:
                raise VideoError(self._path, f"broken: decoding ends at frame {decoded} of {self._count}")
            return False
        self._frame, self._place = frame, frame.pts if self._timed else number
        if self._place is None:
            raise VideoError(self._path, "its frames carry no times")
        return True


class Turn(NamedTuple):
    """How a frame is to be shown: whether rows and columns change places, and then whether these come in reverse."""

    transposed: bool
    columns: bool
    rows: bool


def turn_of(frame: av.VideoFrame) -> Turn:
    """Return how a frame is to be shown by its display matrix, in quarter turns: its rows say where x and y go."""
    # Who is asked for side data stays in memory until cycles are collected. Not all formats can be scaled as they are.
    tiny = frame.reformat(width=16, height=16, format="rgb24")
    matrix: Any = tiny.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Turn(False, False, False)
    (right, right_down), (down_right, down) = np.frombuffer(matrix, np.int32).reshape(3, 3)[:2, :2].tolist()
    if abs(right) + abs(down) < abs(right_down) + abs(down_right):
        return Turn(True, down_right < 0, right_down < 0)
    return Turn(False, right < 0, down < 0)


def upright(frame: av.VideoFrame, turn: Turn, convert: VideoReformatter) -> Planes:
    """Return a frame as it is to be shown, in FFmpeg's memory."""
    exact: dict[str, Any] = {"interpolation": _EXACT_COLORS, "threads": 1}  # starting more takes longer than the work
    if frame.height % 2:  # FFmpeg's planar conversion rounds odd heights otherwise
        packed = convert.reformat(frame, format="rgb24", **exact).to_ndarray()
        planes: list[Any] = [packed[..., channel] for channel in range(3)]
    else:  # at twice the speed
        planar = convert.reformat(frame, format="gbrp", **exact)
        rows = [np.asarray(memoryview(planar.planes[i])).reshape(planar.height, -1) for i in (2, 0, 1)]
        planes = [row[:, : planar.width] for row in rows]
    planes = [plane.T if turn.transposed else plane for plane in planes]
    return [plane[:: -1 if turn.rows else 1, :: -1 if turn.columns else 1] for plane in planes]
