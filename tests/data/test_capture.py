"""The newest picture of real streams over the loopback address, and what is said of those that are none."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from alt_fast.data.capture import Capture
from alt_fast.data.decode import VideoError
from tests.conftest import VideoWriter
from tests.streams import (
    HurriedClock,
    StoppedClock,
    jpegs,
    mpegts,
    parts,
    serve_hls,
    serve_http,
    serve_rtsp,
    serve_tcp,
    shows,
)

MULTIPART = "multipart/x-mixed-replace; boundary=frame"


def wait_until(happened: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """No thread and no handle are left of what is done inside."""
    threads, handles = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    yield
    wait_until(lambda: set(threading.enumerate()) <= threads)
    assert len(os.listdir("/proc/self/fd")) <= handles


def error_of(source: str) -> str:
    """What is said of a source that cannot be opened."""
    with Capture(source, timeout=2) as capture:
        wait_until(capture.ended.is_set)
        with pytest.raises(VideoError) as caught:
            capture.newest()
    return str(caught.value)


def test_a_file_is_played_in_real_time_and_ends(write_video: VideoWriter) -> None:
    clock = HurriedClock()
    with nothing_left(), Capture(str(write_video("a.mp4", frames=30)), clock=clock) as capture:
        wait_until(capture.ended.is_set)
        picture = capture.newest()
    assert picture is not None
    assert shows(picture, 29)
    assert (picture.number, picture.rgb().shape) == (29, (48, 64, 3))
    assert sum(max(0.0, wait) for wait in clock.waits) == pytest.approx(2.9, abs=0.2)
    assert (capture.received, capture.passed_over, capture.damaged, capture.lost, capture.rate) == (30, 29, 0, 0, 10)


def test_what_was_looked_at_was_not_passed_over() -> None:
    with serve_tcp([[mpegts(40)]], hold_last=True) as address, Capture(address) as capture:
        wait_until(lambda: capture.received == 38)
        for _ in range(2):
            assert shows(capture.newest(), 37)
    assert capture.passed_over == 37


def test_a_lost_connection_is_opened_again_after_growing_pauses() -> None:
    """They begin anew after a connection that had pictures."""
    clock, said = HurriedClock(), list[str]()
    connections = [[mpegts()], *[[]] * 6, [mpegts()]]
    with nothing_left(), serve_tcp(connections) as address, Capture(address, 5, said.append, clock) as capture:
        wait_until(lambda: capture.lost >= 9)
        assert capture.received == 40
    assert clock.waits[:9] == [1, 2, 4, 8, 16, 30, 30, 1, 2]
    assert said[0] == f"{address}: lost (it ended); opened again in 1 s"
    assert said[1].startswith(f"{address}: lost (")
    assert said[1].endswith("); opened again in 2 s")


def test_garbage_in_the_middle_is_passed_over() -> None:
    garbage = np.random.default_rng(0).bytes(20_000)
    with serve_tcp([[mpegts(), garbage, mpegts(30, start=20)]], hold_last=True) as address, Capture(address) as capture:
        wait_until(lambda: capture.received >= 48)
        assert shows(capture.newest(), 47)


def first_loss(body: Sequence[bytes]) -> tuple[str, int, int]:
    """What is said, received and damaged when a camera that sends this over HTTP is first lost."""
    lost: list[tuple[str, int, int]] = []

    def say(line: str) -> None:
        lost.append((line, capture.received, capture.damaged))

    with serve_http(MULTIPART, body) as address, Capture(address, say=say, clock=HurriedClock()) as capture:
        wait_until(lambda: lost)
    return lost[0]


def test_broken_pictures_and_garbage_between_them_are_counted() -> None:
    garbage = np.random.default_rng(0).bytes(3000)
    broken = [*jpegs(7), garbage[:300], *jpegs(2)]
    _, received, damaged = first_loss([*parts(broken), garbage + b"\r\n", *parts(jpegs(10))])
    assert 17 <= received <= 19  # what garbage is glued to may go with it
    assert damaged > 1


def test_what_gives_no_picture_for_long_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alt_fast.data.capture._MOST_DAMAGED", 5)
    line, received, damaged = first_loss([*parts(jpegs(10)), *parts([b"nothing"] * 10), *parts(jpegs(10))])
    assert "lost (Invalid data found when processing input); opened again in 1 s" in line
    assert (received, damaged) == (10, 5)


def test_the_resolution_may_change() -> None:
    sent = [mpegts(), mpegts(30, start=20, width=96, height=72)]
    with serve_tcp([sent], hold_last=True) as address, Capture(address) as capture:
        wait_until(lambda: capture.received == 48)
        picture = capture.newest()
    assert picture is not None
    assert picture.rgb().shape == (72, 96, 3)


def test_a_server_that_falls_silent_is_lost_at_the_timeout() -> None:
    said: list[str] = []
    with (
        nothing_left(),
        serve_tcp([[mpegts(40)]], hold_last=True) as address,
        Capture(address, 1.0, said.append) as capture,
    ):
        wait_until(lambda: said)
        assert capture.received == 40
    assert said == [f"{address}: lost (no data for 1 s); opened again in 1 s"]


def test_leaving_does_not_wait_for_a_silent_server() -> None:
    with serve_tcp([[mpegts(40)]], hold_last=True) as address:
        with Capture(address, timeout=60) as capture:
            wait_until(lambda: capture.received == 38)
            start = time.monotonic()
        assert time.monotonic() - start < 10
    wait_until(capture.ended.is_set)


def test_a_network_camera() -> None:
    with nothing_left(), serve_rtsp(mpegts(40)) as address, Capture(address, 2) as capture:
        wait_until(lambda: capture.received == 38)
        assert shows(capture.newest(), 37)


def test_what_comes_in_segments_is_played_at_its_times() -> None:
    """A segment is there at once. Where times jump, by a hundred seconds here, they count anew."""
    segments = [mpegts(20, start) for start in (0, 20, 1000)]
    clock = HurriedClock()
    with nothing_left(), serve_hls(segments, 2) as address, Capture(address, 2, clock=clock) as capture:
        wait_until(lambda: capture.received >= 58)
    assert capture.left_out == 0
    assert 5 < sum(max(0.0, wait) for wait in clock.waits) < 6  # seconds of 58 pictures; 10 a second


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy computer leaves out nothing in these tests."""
    monkeypatch.setattr("alt_fast.data.capture._PATIENCE", 60)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, patience: None) -> list[int]:
    """The numbers of the pictures, each of which takes 0.6 s of the clock."""
    monkeypatch.setattr("alt_fast.data.capture._PATIENCE", 1)
    show, found = Capture._show, list[int]()

    def slowly(capture: Capture, frame: av.VideoFrame) -> None:
        show(capture, frame)
        found.append(next(number for number in range(40) if shows(capture._newest, number)))
        capture._clock.wait(capture._ending, 0.6)

    monkeypatch.setattr(Capture, "_show", slowly)
    return found


def test_what_cannot_be_decoded_in_time_is_left_out_up_to_a_key_frame(decoded: list[int]) -> None:
    """Every fifth picture is one. All is decoded until the second one: there might be no other."""
    with serve_tcp([[mpegts(40)]], hold_last=True) as address, Capture(address, clock=StoppedClock()) as capture:
        wait_until(lambda: capture.received + capture.left_out == 38)
    assert decoded == [0, 1, 2, 3, 4, 5, 10, 15, 20, 25, 30, 35]


def pause(capture: Capture, clock: StoppedClock, after: int) -> None:
    """Let a second pass in which the source has nothing, after so many pictures."""
    wait_until(lambda: capture.received + capture.left_out == after)
    time.sleep(0.1)  # it waits for the next one
    clock.wait(threading.Event(), 1)


def test_decoding_that_has_caught_up_leaves_out_no_more(decoded: list[int]) -> None:
    clock = StoppedClock()

    def sent() -> Iterator[bytes]:
        yield mpegts(20)
        pause(capture, clock, after=18)
        yield mpegts(20, start=20)

    with serve_tcp([sent()], hold_last=True) as address, Capture(address, clock=clock) as capture:
        wait_until(lambda: capture.received + capture.left_out == 38)
    assert decoded == [0, 1, 2, 3, 4, 5, 10, 15, 20, 21, 25, 30, 35]


def test_of_pictures_that_are_all_key_frames_those_are_left_out_that_are_there_already(decoded: list[int]) -> None:
    clock = StoppedClock()

    def sent() -> Iterator[bytes]:
        yield from parts(jpegs(10))
        pause(capture, clock, after=10)
        yield from parts(jpegs(14)[10:])

    with serve_http(MULTIPART, sent()) as address, Capture(address, clock=clock) as capture:
        wait_until(lambda: capture.lost)
    assert decoded[:4] == [0, 1, 10, 11]


def test_a_file_is_decoded_whole_however_slowly(decoded: list[int], write_video: VideoWriter) -> None:
    with Capture(str(write_video("a.mp4", gop=5)), clock=StoppedClock()) as capture:
        wait_until(capture.ended.is_set)
    assert (decoded, capture.left_out) == (list(range(30)), 0)


def test_datagrams() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        target = probe.getsockname()
    stream = mpegts(60)
    with (
        nothing_left(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        Capture(f"udp://127.0.0.1:{target[1]}", timeout=3) as capture,
    ):
        while capture.received < 5:  # nobody says whether somebody listens
            assert not capture.ended.is_set()
            for place in range(0, len(stream), 1316):
                sender.sendto(stream[place : place + 1316], target)
                time.sleep(0.001)


@pytest.mark.parametrize("closed", [True, False])
def test_standard_input_ends_with_its_writer_or_when_it_is_left(monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    read, write = os.pipe()
    with open(read, "rb") as stdin, open(write, "wb") as pipe:
        monkeypatch.setattr("sys.stdin", stdin)

        def send() -> None:
            pipe.write(mpegts(40))
            pipe.flush()
            if closed:
                pipe.close()

        sender = threading.Thread(target=send)
        with Capture("-") as capture:
            sender.start()
            wait_until(lambda: capture.received == (40 if closed else 38))
            sender.join()
            if closed:
                wait_until(capture.ended.is_set)
        wait_until(capture.ended.is_set)


def test_sources_that_are_none(write_video: VideoWriter, tmp_path: Path) -> None:
    """Each is one line that names it, without its password."""
    unknown = write_video("a.mp4", "mpeg4")
    content = unknown.read_bytes()
    unknown.write_bytes(content.replace(b"mp4v", b"xyzv").replace(b"esds", b"esdx"))
    silent = tmp_path / "text.mp4"
    silent.write_text("no video" * 100)
    with serve_http("text/html", [b"<!doctype html><html>" + b"hello " * 3000]) as page:
        assert error_of(page) == f"{page}: it answers with a web page (text/html), not with video"
    with serve_http("text/html", [b"gone"], status=404) as missing:
        assert "404 Not Found" in error_of(missing)
    assert error_of("/dev/video97").startswith("/dev/video97: no such camera; there ")
    assert error_of(str(unknown)) == f"{unknown}: FFmpeg, as PyAV brings it, has no decoder for its video codec"
    assert error_of(str(tmp_path / "none.mp4")) == f"{tmp_path / 'none.mp4'}: no such file"
    assert error_of(str(silent)) == f"{silent}: Invalid data found when processing input"
    assert error_of("nonsense://user:s@cret@host") == "nonsense://host: Protocol not found"
    assert error_of("rtsp://user:secret@127.0.0.1:1/a") == "rtsp://127.0.0.1:1/a: Connection refused"


def test_a_file_that_is_cut_off_is_played_as_far_as_it_goes(write_video: VideoWriter) -> None:
    path = write_video("a.webm", "libvpx-vp9", gop=5)
    path.write_bytes(path.read_bytes()[:700])
    with Capture(str(path), clock=HurriedClock()) as capture:
        wait_until(capture.ended.is_set)
        assert shows(capture.newest(), capture.received - 1)
    assert 0 < capture.received < 30


def test_a_file_that_is_broken_for_long_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alt_fast.data.capture._MOST_DAMAGED", 5)
    path = tmp_path / "a.mjpg"
    path.write_bytes(b"".join(parts([*jpegs(10), *[b"nothing"] * 10])))
    assert error_of(str(path)) == f"{path}: Invalid data found when processing input"


def test_faults_of_ours_are_not_swallowed(write_video: VideoWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Capture, "_show", lambda self, frame: 1 / 0)
    with Capture(str(write_video("a.mp4"))) as capture:
        wait_until(capture.ended.is_set)
        with pytest.raises(ZeroDivisionError):
            capture.newest()
