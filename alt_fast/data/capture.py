"""The newest picture of a source that goes on: a camera, an address, standard input, or a file played in real time."""

import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Protocol
from urllib.request import urlopen

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from alt_fast.data.decode import Frames, Planes, VideoError, turn_of, upright, video_stream
from alt_fast.data.storage import StorageError, locate

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before a lost source is opened again
_PATIENCE, _WAIT = 1.0, 5e-3  # seconds of decoding without any such wait for data, after which decoding is too slow
_SEGMENTED = ("hls", "dash")  # what comes by many seconds at once, to be played at its times
_JUMP = 10.0  # seconds that such a source's times may be off before they count anew
_MOST_DAMAGED = 1000  # packets in a row that give no picture: with ten seconds between key frames, some at the start
_OPTIONS = {
    "analyzeduration": "1000000",  # microseconds of a stream that are looked at before the first picture; not five
    "overrun_nonfatal": "1",  # UDP that comes faster than it is read loses pictures, not the connection
    "rtsp_flags": "prefer_tcp",  # no picture is torn by a lost datagram
}


class Clock(Protocol):
    """What time it is, in seconds from any moment on, and how to wait."""

    def now(self) -> float:
        """Return the time."""

    def wait(self, event: threading.Event, seconds: float) -> None:
        """Return after so many seconds, or as soon as the event is set."""


class WallClock:
    """Time as it passes, whatever happens to the computer's date."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> None:
        event.wait(max(0.0, seconds))


@dataclass(frozen=True)
class Picture:
    """A decoded picture. number: of those before it. time: when it came, in seconds of the clock."""

    frame: av.VideoFrame
    number: int
    time: float

    def planes(self) -> Planes:
        """Return its colours, upright, uint8 [H, W] each."""
        return upright(self.frame, turn_of(self.frame), VideoReformatter())

    def rgb(self) -> Frames:
        """Return it as uint8 RGB [H, W, 3], upright."""
        return np.stack(self.planes(), -1)


class Capture:
    """Decodes a source in a thread of its own and keeps its newest picture, and no other.

    source: a file, which is played in real time; a camera as /dev/video0; an address as rtsp://, http://, udp://
    or tcp://; "-" for standard input, played as it comes. timeout: seconds without data, or before an answer, after
    which an address counts as lost. say: takes a line about a source that is lost. clock: also of the pauses.

    A source that is lost after its first picture is opened again after pauses that double from 1 to 30 s. Files,
    recordings behind an address (those that say how long they are) and standard input end with their end. They are
    decoded whole, however slowly; of a source that goes on, what cannot be decoded in time is left out up to a key
    frame. HLS and DASH come in parts of some seconds: they are played in real time, and decoded whole.

    received: pictures so far. passed_over: those of them that a newer one replaced before anyone asked. left_out:
    packets that were not decoded, for lack of time. damaged: packets that gave no picture. lost: connections. rate:
    pictures per second as the source has it, None where it does not say. ended: set when no more pictures will come.

        with Capture("/dev/video0") as capture: ...
    """

    def __init__(
        self,
        source: str,
        timeout: float = 10.0,
        say: Callable[[str], object] = lambda line: None,
        clock: Clock | None = None,
    ) -> None:
        self.name = re.sub(r"://[^/]*@", "://", source)  # without a password
        self.received = self.passed_over = self.left_out = self.damaged = self.lost = 0
        self.rate: float | None = None
        self.ended = threading.Event()
        self._source, self._timeout, self._say, self._clock = source, timeout, say, clock or WallClock()
        self._newest: Picture | None = None
        self._looked = True  # at the newest picture
        self._in_a_row = 0  # damaged packets since the last picture
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"capture {self.name}", daemon=True)

    def __enter__(self) -> "Capture":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End the thread. One that waits for an address which is silent ends by itself at the timeout."""
        self._ending.set()
        self._thread.join(1.0)

    def newest(self) -> Picture | None:
        """Return the newest picture, None before the first. Raises VideoError for what cannot be opened or is cut off.

        After `ended` was set it is the last one.
        """
        with self._lock:
            self._looked = True
            picture = self._newest
        if self.ended.is_set() and self._error is not None:
            raise self._error
        return picture

    def _run(self) -> None:
        pause = FIRST_PAUSE
        try:
            while not self._ending.is_set():
                before = self.received
                endless, cause = self._play()
                if self._ending.is_set():
                    return
                if self.received == 0 or (cause and not endless):
                    raise VideoError(self.name, cause or "it ended before its first picture")
                if not endless:
                    return
                self.lost += 1
                pause = FIRST_PAUSE if self.received > before else min(2 * pause, LONGEST_PAUSE)
                self._say(f"{self.name}: lost ({cause or 'it ended'}); opened again in {pause:g} s")
                self._clock.wait(self._ending, pause)
        except BaseException as e:  # whatever it is, `newest` raises it
            self._error = e
        finally:
            self.ended.set()

    def _play(self) -> tuple[bool, str]:
        """Open the source and take its pictures. Returns whether it is one that goes on, and what ended it.

        That is empty at an end without an error.
        """
        endless = "://" in self._source or _is_camera(self._source)
        self._in_a_row = 0
        try:
            with self._open() as container:
                endless = endless and not container.duration
                self._take(container, endless)
        except StorageError as e:
            hint = f"; a camera is /dev/video{self._source}" if self._source.isdecimal() else ""
            return endless, f"{e}{hint}"
        except VideoError as e:
            return endless, e.cause
        except av.error.ExitError:
            return endless, f"no data for {self._timeout:g} s"
        except av.error.FFmpegError as e:
            return endless, self._explain(e)
        return endless, ""

    def _open(self) -> "av.container.InputContainer":
        if self._source == "-":
            return av.open(_StandardInput(self._ending), "r", options=_OPTIONS, metadata_errors="ignore")
        if _is_camera(self._source):
            return av.open(self._source, format="v4l2", metadata_errors="ignore")
        if "://" in self._source:
            return av.open(self._source, options=_OPTIONS, metadata_errors="ignore", timeout=self._timeout)
        return av.open(locate(self._source).url(), metadata_errors="ignore")

    def _take(self, container: "av.container.InputContainer", endless: bool) -> None:
        stream = video_stream(self.name, container)
        self.rate = float(stream.average_rate) if stream.average_rate else None
        segmented = endless and container.format.name in _SEGMENTED
        paced = segmented or (not endless and self._source != "-")
        start: float | None = None
        packets = self._packets(container, stream)
        for packet in packets if paced or not endless else self._in_time(packets):
            try:
                frames = packet.decode()
            except av.error.FFmpegError as e:
                self._count_damage(e)
                continue
            for frame in frames:
                if paced and frame.time is not None:
                    now = self._clock.now()
                    if start is None or (segmented and abs(start + frame.time - now) > _JUMP):
                        start = now - frame.time
                    self._clock.wait(self._ending, start + frame.time - now)
                self._show(frame)

    def _in_time(
        self, packets: "Iterator[av.Packet[av.video.stream.VideoStream]]"
    ) -> "Iterator[av.Packet[av.video.stream.VideoStream]]":
        """Yield packets, but where decoding is too slow for their source none up to the next key frame.

        It is where the source never lets it wait. Where every packet is a key frame, those are left out that are there
        already; where only the first one is, nothing is.
        """
        now, waited, count, key_frames, skipping = self._clock.now, self._clock.now(), 0, 0, False
        asked = waited
        for packet in packets:
            if now() - asked > _WAIT:
                waited = now()
            late = now() - waited > _PATIENCE
            count, key_frames = count + 1, key_frames + packet.is_keyframe
            if packet.is_keyframe:
                skipping = late and key_frames == count
            else:
                skipping |= late and key_frames > 1
            if skipping:
                self.left_out += 1
            else:
                yield packet
            asked = now()

    def _packets(
        self, container: "av.container.InputContainer", stream: "av.video.stream.VideoStream"
    ) -> Iterator["av.Packet[av.video.stream.VideoStream]"]:
        """Yield packets until the source ends or the thread is to; what is none is passed over."""
        packets = container.demux(stream)
        while not self._ending.is_set():
            try:
                packet = next(packets, None)
            except av.error.InvalidDataError as e:
                self._count_damage(e)
                packets = container.demux(stream)
                continue
            if packet is None or self._ending.is_set():
                return
            yield packet

    def _count_damage(self, error: av.error.FFmpegError) -> None:
        """Count what gave no picture. Raises the error when nothing has given any for long."""
        self.damaged += 1
        self._in_a_row += 1
        if self._in_a_row == _MOST_DAMAGED:
            raise error

    def _explain(self, error: av.error.FFmpegError) -> str:
        """Return why the source cannot be opened, or was lost."""
        if _is_camera(self._source) and isinstance(error, FileNotFoundError):
            there = ", ".join(map(str, sorted(Path("/dev").glob("video*"))))
            return f"no such camera; there {f'are {there}' if there else 'is none'}"
        if self.received == 0 and re.match(r"https?://", self._source):
            try:
                with urlopen(self._source, timeout=self._timeout) as answer:
                    kind = answer.headers.get_content_type()
            except (OSError, ValueError, HTTPException):
                kind = ""  # FFmpeg has said it
            if kind == "text/html":
                return "it answers with a web page (text/html), not with video"
        return error.strerror or type(error).__name__  # its text has the address, and the password in it

    def _show(self, frame: av.VideoFrame) -> None:
        with self._lock:
            self.passed_over += not self._looked
            self._in_a_row = 0
            self._newest = Picture(frame, self.received, self._clock.now())
            self._looked = False
            self.received += 1


class _StandardInput:
    """Standard input for PyAV; it ends when the event is set, whoever writes to it."""

    def __init__(self, ending: threading.Event) -> None:
        self._ending, self._file = ending, sys.stdin.fileno()

    def read(self, size: int) -> bytes:
        while not self._ending.is_set():
            if select.select([self._file], [], [], 0.1)[0]:
                return os.read(self._file, size)
        return b""


def _is_camera(source: str) -> bool:
    return re.match(r"/dev/v(ideo|4l)", source) is not None
