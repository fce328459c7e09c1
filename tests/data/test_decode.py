"""Exact frames from every codec the installed FFmpeg writes, and a clear error for every kind of bad file."""

import errno
import os
import tracemalloc
import wave
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.stream import VideoStream

from alt_fast.data.decode import (
    FrameReader,
    Frames,
    Planes,
    Turn,
    VideoError,
    _errors_of,
    decode_clip,
    decode_frames,
    index_video,
    is_turned,
    upright,
    whole,
)
from alt_fast.data.sampling import segment_positions
from tests.conftest import NoiseWriter, VideoWriter, hold_upright, set_display_matrix

CODECS = [
    ("h264.mp4", "libx264", {}),
    ("short_gops.mp4", "libx264", {"gop": 5}),
    ("hevc.mp4", "libx265", {}),
    ("mpeg4.avi", "mpeg4", {}),
    ("b_frames.avi", "mpeg4", {"gop": 6, "b_frames": 2}),
    ("mjpeg.avi", "mjpeg", {"pix_fmt": "yuvj420p"}),
    ("vp8.webm", "libvpx", {}),
    ("vp9.webm", "libvpx-vp9", {}),
    ("av1.mkv", "libsvtav1", {}),
    ("stream.ts", "libx264", {"gop": 5}),
    ("raw.h264", "libx264", {}),
    ("b_frames_h264.avi", "libx264", {"gop": 6, "b_frames": 2}),
    ("b_frames_h264.asf", "libx264", {"gop": 6, "b_frames": 2}),
    ("b_frames_mpeg2.avi", "mpeg2video", {"gop": 6, "b_frames": 2}),
    ("b_frames_mpeg2.wmv", "mpeg2video", {"gop": 6, "b_frames": 2}),
    ("odd.webm", "libvpx-vp9", {"width": 37, "height": 53}),
]


def frame_numbers(clip: np.ndarray) -> list[int]:
    """Which frames these are, read off their grey level."""
    return ((clip.reshape(len(clip), -1).mean(1) - 20) / 6).round().astype(int).tolist()


def test_an_encoder_leaves_this_thread_s_scheduling(write_video: VideoWriter, write_noise: NoiseWriter) -> None:
    """Other tests' processes would hardly run beside a real-time one."""
    before = os.sched_getscheduler(0)
    for write in (write_video, write_noise):
        write("av1.mkv", "libsvtav1")
        assert os.sched_getscheduler(0) == before


@pytest.mark.parametrize(("name", "codec", "options"), CODECS, ids=[name for name, _, _ in CODECS])
def test_exact_frames(write_video: VideoWriter, name: str, codec: str, options: dict) -> None:
    path = write_video(name, codec, 30, **options)
    everything = decode_clip(path, [(i + 0.5) / 30 for i in range(30)])
    assert everything.shape == (30, options.get("height", 48), options.get("width", 64), 3)
    assert frame_numbers(everything) == list(range(30))
    assert frame_numbers(decode_clip(path, [0.1, 0.1, 0.5, 0.99])) == [3, 3, 15, 29]


def test_seeks_instead_of_decoding_what_is_not_sampled(
    write_video: VideoWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video("long.mp4", frames=39, gop=3)
    decoded = []
    original = av.container.InputContainer.decode

    class Counting:
        def __init__(self, container: av.container.InputContainer) -> None:
            self.container = container

        def __getattr__(self, name: str) -> object:
            return getattr(self.container, name)

        def __enter__(self) -> "Counting":
            return self

        def __exit__(self, *error: object) -> None:
            self.container.close()

        def decode(self, stream: object) -> object:
            for frame in original(self.container, stream):
                decoded.append(frame.pts)
                yield frame

    monkeypatch.setattr("alt_fast.data.decode._open", lambda path: Counting(av.open(path)))
    assert frame_numbers(decode_clip(path, [0.01, 0.5, 0.98])) == [0, 19, 38]
    assert len(decoded) <= 3 * 3


@pytest.mark.parametrize("step", [1, 3, 11])
@pytest.mark.parametrize(("name", "codec", "options"), CODECS, ids=[name for name, _, _ in CODECS])
def test_frames_read_in_turn_are_those_read_together(
    write_video: VideoWriter, name: str, codec: str, options: dict, step: int
) -> None:
    """Bit by bit, in calls of four; some again, as after a damaged frame."""
    path = write_video(name, codec, 60, **options)
    index = index_video(path)
    wanted = list(range(1, 60, step))
    expected = decode_frames(path, index, wanted)
    reader = FrameReader(path, index)
    parts = [wanted[start : start + 4] for start in range(0, len(wanted), 4)]
    assert np.array_equal(np.concatenate([reader(part) for part in parts]), expected)
    alternate = FrameReader(path, index)  # as one of two processes reads
    found = {number: frame for part in parts[::2] for number, frame in zip(part, alternate(part), strict=True)}
    assert all(np.array_equal(frame, expected[wanted.index(number)]) for number, frame in found.items())
    for again in ([wanted[0]], wanted[:2], [wanted[-1]] * 2):
        assert np.array_equal(reader(again), expected[[wanted.index(number) for number in again]])


@pytest.mark.parametrize("name", ["joined.ts", "joined.mpg", "joined.webm"])
def test_files_joined_by_cat(write_video: VideoWriter, name: str) -> None:
    """Two parts whose time stamps are the same."""
    codec = {".ts": "libx264", ".mpg": "mpeg2video", ".webm": "libvpx"}[Path(name).suffix]
    part = write_video(f"part-{name}", codec, 15, gop=5, b_frames=0 if codec == "libvpx" else 2)
    path = part.with_name(name)
    path.write_bytes(2 * part.read_bytes())
    index = index_video(path)
    assert (index.count, index.times) == (30, None)
    assert float(index.duration) == pytest.approx(3)
    reader = FrameReader(path, index)
    assert frame_numbers(decode_clip(path, [(i + 0.5) / 30 for i in range(30)])) == 2 * list(range(15))
    assert frame_numbers(np.concatenate([reader([2, 14]), reader([15, 16]), reader([29])])) == [2, 14, 0, 1, 14]


@pytest.mark.parametrize("name", ["copy.mp4", "copy.mkv"])
def test_copies_of_b_frames_whose_times_were_guessed(write_video: VideoWriter, name: str) -> None:
    """What AVI does not say is in no copy of it either; when frames are shown is still known."""
    source = write_video("source.avi", gop=10, b_frames=2)
    path = write_late(source, name, 0)
    index = index_video(path)
    assert index.misdated
    assert index.times is not None
    assert frame_numbers(decode_clip(path, [(i + 0.5) / 30 for i in range(30)])) == list(range(30))
    assert [float(index.time_of(number)) for number in (1, 29)] == [pytest.approx(0.1), pytest.approx(2.9)]
    with pytest.raises(VideoError, match="truncated"):
        decode_clip(cut(source, 0.6), [0.5])


def test_what_is_seeked_in_is_not_counted(write_video: VideoWriter) -> None:
    """B-frames whose times are told, or none, whatever the codec says of them."""
    for name, codec, b_frames in [
        ("a.mp4", "libx264", 2),
        ("a.mkv", "libx264", 0),
        ("a.ts", "libx264", 2),
        ("a.avi", "mpeg4", 2),
        ("b.avi", "libx264", 0),
        ("b.mkv", "mpeg2video", 0),
        ("c.avi", "mpeg2video", 2),
    ]:
        assert not index_video(write_video(name, codec, gop=6, b_frames=b_frames)).counted, name


def test_program_streams_of_mpeg1(tmp_path: Path) -> None:
    """FFmpeg gives pictures the times of others after a seek."""
    path = tmp_path / "a.mpg"
    noise = np.random.default_rng(1).integers(0, 16, (40, 64, 96, 3)) + 3 * np.arange(40)[:, None, None, None]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg1video", rate=25)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for image in noise.astype(np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    index = index_video(path)
    every = decode_frames(path, replace(index, times=None), range(40))
    assert all(np.array_equal(decode_frames(path, index, [i])[0], every[i]) for i in range(40))


@pytest.mark.parametrize(("name", "codec"), [("doubled.mp4", "libx264"), ("doubled.webm", "libvpx")])
def test_two_packets_of_one_time(write_video: VideoWriter, name: str, codec: str) -> None:
    """Two frames; but in VP8 it may be one that is hidden, and the first frame of that time is taken."""
    source = write_video(f"source-{name}", codec, gop=5, b_frames=0)
    path = source.with_name(name)
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.dts is not None and packet.pts is not None:
                packet.pts, packet.stream = packet.pts + packet.duration * (number == 6), stream
                new.mux(packet)
    index = index_video(path)
    assert index.times is not None
    assert index.times[6] == index.times[7]
    assert index.counted == (codec == "libx264")
    found = frame_numbers(decode_clip(path, [(i + 0.5) / 30 for i in range(30)]))
    assert found == [6 if i == 7 and codec == "libvpx" else i for i in range(30)]


def test_raw_streams_with_times_that_nobody_seeks_in(tmp_path: Path) -> None:
    path = tmp_path / "raw.m4v"
    with av.open(str(path), "w", format="m4v") as container:
        stream = container.add_stream("mpeg4", rate=10)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 1_000_000
        stream.codec_context.max_b_frames = 2
        for i in range(30):
            image = np.full((48, 64, 3), 20 + 6 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    index = index_video(path)
    assert not index.counted
    assert frame_numbers(decode_clip(path, [0.1, 0.5, 0.99])) == [3, 15, 29]
    reader = FrameReader(path, index)
    assert frame_numbers(np.concatenate([reader([3, 4]), reader([20]), reader([1])])) == [3, 4, 20, 1]


@pytest.mark.parametrize(("name", "codec"), [("one.mp4", "libx264"), ("raw.h264", "libx264")])
def test_a_video_of_one_keyframe_is_decoded_once(
    write_video: VideoWriter, monkeypatch: pytest.MonkeyPatch, name: str, codec: str
) -> None:
    """Or one that carries no times: by the packets that are read, however many calls there are."""
    path = write_video(name, codec, 120, gop=1000)
    index = index_video(path)
    read = []

    class Counting:
        """A container that tells how often a packet was taken from it."""

        def __init__(self, container: av.container.InputContainer) -> None:
            self.container = container

        def __getattr__(self, name: str) -> object:
            return getattr(self.container, name)

        def demux(self, stream: VideoStream) -> Iterator[av.Packet]:
            for packet in self.container.demux(stream):
                read.append(packet)
                yield packet

        def decode(self, stream: VideoStream) -> Iterator[object]:
            for packet in self.demux(stream):
                yield from packet.decode()

    monkeypatch.setattr("alt_fast.data.decode._open", lambda path: Counting(av.open(path)))
    reader = FrameReader(path, index)
    frames = np.concatenate([reader(range(start, start + 10)) for start in range(0, 120, 10)])
    assert frame_numbers(frames[:35]) == list(range(35))  # whose grey levels do not wrap
    assert len(read) <= 121  # and what ends the stream


def test_after_a_damaged_frame_the_next_call_starts_anew(write_video: VideoWriter) -> None:
    path = write_video("damaged.mp4", frames=60, gop=10)
    index = index_video(path)
    broken: list[str] = []

    def take(planes: Planes) -> Frames:
        if broken:
            raise VideoError(path, broken.pop())
        return whole(planes)

    reader = FrameReader(path, index, take)
    reader([3])
    broken.append("damaged")
    with pytest.raises(VideoError, match="damaged"):
        reader([5])
    assert np.array_equal(reader([6, 25]), decode_frames(path, index, [6, 25]))


def test_memory_does_not_grow_with_length(write_video: VideoWriter) -> None:
    path = write_video("long.avi", "mpeg4", frames=6000, width=16, height=16, gop=50)
    tracemalloc.start()
    try:
        clip = decode_clip(path, [0.001, 0.5, 0.999])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert clip.shape == (3, 16, 16, 3)
    assert peak < 500_000  # some bytes a frame; all frames would be 4.6 MB


def test_one_frame(write_video: VideoWriter) -> None:
    clip = decode_clip(write_video("one.webm", "libvpx-vp9", frames=1), [0.1, 0.5, 0.9])
    assert frame_numbers(clip) == [0, 0, 0]


@pytest.mark.parametrize("name", [b"12:30.mp4", b"caf\xe9.mp4", b"%d, 100%.mp4", b"file:a.mp4"])
def test_names_that_are_no_address_and_no_pattern(
    write_video: VideoWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video("plain.mp4").rename(os.fsdecode(name))
    assert frame_numbers(decode_clip(os.fsdecode(name), [0.1])) == [3]


@pytest.mark.parametrize("header", [0, 7, 2000])
def test_header_that_lies_about_the_frame_count(write_video: VideoWriter, header: int) -> None:
    path = write_video("lies.avi", "mpeg4", 30)
    content = bytearray(path.read_bytes())
    main, stream = content.index(b"avih") + 8, content.index(b"strh") + 8
    content[main + 16 : main + 20] = header.to_bytes(4, "little")  # dwTotalFrames
    content[stream + 32 : stream + 36] = header.to_bytes(4, "little")  # dwLength
    path.write_bytes(content)
    if header == 2000:
        with pytest.raises(VideoError, match=r"truncated: the header promises 200\.00 s, the file holds 3\.00 s"):
            decode_clip(path, [0.5])
    else:
        assert frame_numbers(decode_clip(path, [0.1, 0.5, 0.99])) == [3, 15, 29]


def test_a_last_frame_may_be_held_for_long(tmp_path: Path) -> None:
    """As in slides."""
    path = tmp_path / "slides.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.max_b_frames = 0
        frames = [av.VideoFrame.from_ndarray(np.full((48, 64, 3), 80 * i, np.uint8), "rgb24") for i in range(3)]
        packets = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        packets[-1].duration = 9 * (packets[1].pts - packets[0].pts)
        container.mux(packets)
    with av.open(str(path)) as container:
        assert container.duration == 11 * av.time_base
    assert len(decode_clip(path, [0.1, 0.5, 0.9])) == 3


def test_rotation_is_applied(write_video: VideoWriter, tmp_path: Path) -> None:
    hold_upright(write_video("landscape.mp4", width=64, height=32), tmp_path / "upright.mp4")
    assert decode_clip(tmp_path / "upright.mp4", [0.5]).shape == (1, 64, 32, 3)
    assert [is_turned(tmp_path / name) for name in ("landscape.mp4", "upright.mp4")] == [False, True]


@pytest.mark.parametrize(
    ("matrix", "right"),
    [  # where x and y go, by rows, and the picture [[1, 2], [3, 4]] as it is to be shown
        ((1, 0, 0, 1), [[1, 2], [3, 4]]),
        ((-1, 0, 0, 1), [[2, 1], [4, 3]]),
        ((1, 0, 0, -1), [[3, 4], [1, 2]]),
        ((-1, 0, 0, -1), [[4, 3], [2, 1]]),
        ((0, 1, -1, 0), [[3, 1], [4, 2]]),
        ((0, -1, 1, 0), [[2, 4], [1, 3]]),
        ((0, 1, 1, 0), [[1, 3], [2, 4]]),
        ((0, -1, -1, 0), [[4, 2], [3, 1]]),
    ],
)
def test_what_is_to_be_turned_and_mirrored(
    matrix: tuple[int, ...], right: list[list[int]], write_video: VideoWriter, tmp_path: Path
) -> None:
    """Quarters of a picture of different greys; containers other than MP4 say it too."""
    path, frame = tmp_path / "a.mp4", np.array([[40, 90], [140, 190]], np.uint8).repeat(32, 0).repeat(32, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame[..., None].repeat(3, 2), format="rgb24")))
        container.mux(stream.encode(None))
    set_display_matrix(path, tmp_path / "b.mp4", matrix)
    remuxed = tmp_path / "c.mkv"
    with av.open(str(tmp_path / "b.mp4")) as source, av.open(str(remuxed), "w") as target:
        copied = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copied
                target.mux(packet)
    for name in ("b.mp4", "c.mkv"):
        shown = decode_clip(tmp_path / name, [0.5])[0, 16::32, 16::32, 0].astype(int)
        assert np.abs(shown - 50 * np.array(right) + 10).max() < 8
        assert is_turned(tmp_path / name) == (matrix != (1, 0, 0, 1))


def test_pictures_of_a_palette(tmp_path: Path) -> None:
    """A format that FFmpeg scales from, and not to."""
    path, palette = tmp_path / "palette.avi", np.arange(256, dtype=np.uint8)[:, None].repeat(4, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("zmbv", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "pal8"
        for i in range(4):
            picture = np.full((48, 64), 40 + 40 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray((picture, palette), format="pal8")))  # type: ignore[arg-type]
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).format.name == "pal8"
    assert decode_clip(path, [0.1, 0.9])[:, 0, 0, 0].tolist() == [40, 160]


def test_turns_of_colours() -> None:
    class Frame:
        width, height = 4, 2
        planes = (np.arange(100, 108, dtype=np.uint8), np.zeros(8, np.uint8), np.arange(8, dtype=np.uint8))

        def reformat(self, frame: "Frame", **options: object) -> "Frame":
            return self

    turned = np.stack(upright(Frame(), Turn(True, False, True), Frame()))  # type: ignore[arg-type]
    assert turned.shape == (3, 4, 2)
    assert turned[0].tolist() == [[3, 7], [2, 6], [1, 5], [0, 4]]
    assert turned[1, 0].tolist() == [103, 107]


def test_variable_frame_rate(tmp_path: Path) -> None:
    path = tmp_path / "vfr.mkv"
    times = [0, 10, 20, 500, 510, 900, 1000, 2000]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 + 6 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert frame_numbers(decode_clip(path, [(i + 0.5) / 8 for i in range(8)])) == list(range(8))


def test_metadata_that_is_not_utf8(write_video: VideoWriter) -> None:
    path = write_video("title.avi", "mpeg4")
    content = path.read_bytes()
    assert b"Lavf" in content
    path.write_bytes(content.replace(b"Lavf", b"\xff\xfe\xe9\xf1", 1))
    assert len(decode_clip(path, [0.5])) == 1


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")])
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_truncated_files(write_video: VideoWriter, name: str, codec: str, share: float) -> None:
    path = cut(write_video(name, codec), share)
    with pytest.raises(VideoError, match=r"truncated|no video stream") as caught:
        decode_clip(path, [0.5])
    assert caught.value.path == str(path)


def test_damaged_pictures(write_video: VideoWriter) -> None:
    path = write_video("damaged.avi", "mpeg4", gop=300)
    content = bytearray(path.read_bytes())
    start = content.index(b"00dc", content.index(b"movi"))
    for _ in range(30):  # overwrite every picture
        size = int.from_bytes(content[start + 4 : start + 8], "little")
        content[start + 8 : start + 8 + size] = b"\xff" * size
        start = content.find(b"00dc", start + 8 + size)
    path.write_bytes(content)
    with pytest.raises(VideoError, match="damaged"):
        decode_clip(path, [0.1, 0.9])


def test_packets_that_give_no_frame(write_video: VideoWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video("short.avi", "mpeg4", frames=30)
    real = index_video(path)
    monkeypatch.setattr("alt_fast.data.decode._list_frames", lambda *_: replace(real, count=31, times=None))
    assert frame_numbers(decode_clip(path, [0.5, 0.99])) == [15, 29]  # one missing at the end: the last one stands in
    monkeypatch.setattr("alt_fast.data.decode._list_frames", lambda *_: replace(real, count=40, times=None))
    with pytest.raises(VideoError, match="broken: decoding ends at frame 30 of 40"):
        decode_clip(path, [0.5, 0.99])


def test_hidden_frames_shift_nothing(write_video: VideoWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video("hidden.webm", "libvpx", frames=30)
    real = index_video(path)
    assert real.times is not None
    hidden = [real.times[i] - 1 for i in (8, 16, 24)]  # packets that are decoded and never shown, as VP8 may have
    times = sorted([*real.times, *hidden])
    monkeypatch.setattr("alt_fast.data.decode._list_frames", lambda *_: replace(real, count=33, times=times))
    positions = [(times.index(real.times[i]) + 0.5) / 33 for i in (0, 7, 8, 17, 29)]
    assert frame_numbers(decode_clip(path, positions)) == [0, 7, 8, 17, 29]
    assert frame_numbers(decode_clip(path, [(times.index(hidden[1]) + 0.5) / 33])) == [16]


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_truncated_file_with_sound(tmp_path: Path, share: float) -> None:
    path = tmp_path / "sound.webm"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libvpx-vp9", rate=10), container.add_stream("libopus", rate=48000)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for i in range(40):
            image = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 9600), np.int16), format="s16", layout="stereo")
            sound.sample_rate, sound.pts, sound.time_base = 48000, i * 4800, Fraction(1, 48000)
            container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    assert len(decode_clip(path, [0.5])) == 1
    with pytest.raises(VideoError, match="truncated"):
        decode_clip(cut(path, share), [0.5])


def test_frames_that_change_size(write_video: VideoWriter, tmp_path: Path) -> None:
    parts = [write_video("a.h264", width=64), write_video("b.h264", width=96)]
    (tmp_path / "both.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(VideoError, match=r"its frames differ in size \(64 x 48, 96 x 48\)"):
        decode_clip(tmp_path / "both.h264", [0.1, 0.9])
    assert decode_clip(tmp_path / "both.h264", [0.1, 0.4]).shape == (2, 48, 64, 3)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")])
def test_damage_anywhere_gives_frames_or_a_video_error(write_video: VideoWriter, name: str, codec: str) -> None:
    path = write_video(name, codec)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = {"frames": 0, "error": 0}
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), int(rng.integers(1, 4))):
            damaged[place] = int(rng.integers(256))
        path.write_bytes(damaged[: int(rng.integers(1, len(content) + 1))] if rng.random() < 0.3 else damaged)
        try:
            assert decode_clip(path, [0.1, 0.5, 0.9]).shape[0] == 3
            outcomes["frames"] += 1
        except VideoError:
            outcomes["error"] += 1
    assert all(outcomes.values())


LATE = [("late.mp4", "libx264"), ("late.mkv", "libx264"), ("late.webm", "libvpx-vp9"), ("late.mp4", "libx265")]


@pytest.mark.parametrize(("name", "codec"), LATE)
def test_the_first_keyframe_stands_in_for_what_a_stream_copy_cut_off(
    write_video: VideoWriter, name: str, codec: str
) -> None:
    path = write_late(write_video(f"whole-{name}", codec, gop=10), name)
    index = index_video(path)
    assert 0 < index.first < 10
    numbers = frame_numbers(decode_clip(path, [(i + 0.5) / index.count for i in range(index.count)]))
    key = numbers[index.first]
    assert numbers == [key] * index.first + list(range(key, 30))


def write_late(source: Path, name: str, dropped: int = 5) -> Path:
    """Copy a video without its first packets, as cutting without encoding again does."""
    path = source.with_name(name)
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.dts is not None][dropped:]
        start = packets[0].dts
        for packet in packets:
            packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, stream
            new.mux(packet)
    return path


@pytest.mark.parametrize(("name", "codec"), LATE)
def test_a_time_before_the_first_keyframe_shows_it(write_video: VideoWriter, name: str, codec: str) -> None:
    index = index_video(write_late(write_video(f"whole-{name}", codec, gop=10), name))
    assert index.frame_at(Fraction(0)) == index.first > 0


PARTS = [
    *(("part.mkv", "mpeg4"), ("part.webm", "libvpx-vp9"), ("part.wmv", "wmv2"), ("part.nut", "mpeg4")),
    ("part.mp4", "mpeg4"),
]


@pytest.mark.parametrize(("name", "codec"), PARTS)
def test_parts_that_do_not_begin_at_0_are_whole(write_video: VideoWriter, name: str, codec: str) -> None:
    """Of a longer video, with its times: their headers say when they end, not how long they are."""
    source = write_video("whole.nut", codec, gop=10)
    path = source.with_name(name)
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                late = round(20 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + late, packet.dts + late, stream
                new.mux(packet)
    assert frame_numbers(decode_clip(path, [0.0, 0.5, 0.99])) == [0, 15, 29]


def test_a_picture_on_the_cover_of_music_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as out:
        sound, cover = out.add_stream("aac", rate=16000), out.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))
        out.mux([*sound.encode(silence), *sound.encode(), *cover.encode(picture), *cover.encode()])
    with pytest.raises(VideoError, match="no video stream"):
        index_video(path)


def test_a_cover_that_comes_first_is_not_the_video(write_video: VideoWriter) -> None:
    source = write_video("whole.mp4")
    path = source.with_name("covered.mp4")
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        cover = new.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 48, "yuvj420p", Disposition.attached_pic
        stream = new.add_stream_from_template(old.streams.video[0])
        new.mux([*cover.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))), *cover.encode()])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    for positions in ([0.0, 0.5, 0.99], [(i + 0.5) / 30 for i in range(30)]):  # by seeking, and one after the other
        assert (decode_clip(path, positions) == decode_clip(source, positions)).all()


def test_positions_that_are_whole_frames_are_these(write_video: VideoWriter) -> None:
    """Whatever the last digits of their products: 0.35 of 180 frames is frame 63."""
    index = index_video(write_video("whole.mp4"))
    for segments in range(1, 31):
        found = index.frames_at([(i + 0.5) / segments for i in range(segments)])
        assert found == [(2 * i + 1) * index.count // (2 * segments) for i in range(segments)]
    many = replace(index, count=180, times=None, keyframes=())
    assert many.frames_at(segment_positions(10)) == [(2 * i + 1) * 9 for i in range(10)]


@pytest.mark.parametrize("b_frames", [0, 3])
def test_a_cut_behind_a_keyframe_that_the_file_keeps(write_video: VideoWriter, b_frames: int) -> None:
    """`ffmpeg -ss T -c copy` to MP4: an edit list hides the frames before T, and those behind it refer to them."""
    source = write_video("whole.mp4", gop=50, b_frames=b_frames)
    path = source.with_name("cut.mp4")
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        start = int(0.5 / old.streams.video[0].time_base)
        for packet in old.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, stream
                new.mux(packet)
    index = index_video(path)
    assert (index.count, index.first) == (25, 0)
    positions = [(i + 0.5) / 25 for i in range(25)]
    assert frame_numbers(decode_clip(path, positions)) == list(range(5, 30))
    reader = FrameReader(path, index)
    assert frame_numbers(np.concatenate([reader([3, 4]), reader([9]), reader([24])])) == [8, 9, 14, 29]


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video " * 100)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    causes = {
        "missing.mp4": "no such file",
        "empty.mp4": "empty file",
        "text.mp4": "no video",
        "sound.wav": r"no video stream \(it has audio streams\)",
    }
    for name, cause in causes.items():
        with pytest.raises(VideoError, match=cause) as caught:
            decode_clip(tmp_path / name, [0.5])
        assert name in str(caught.value)
    with pytest.raises(VideoError, match="not a regular file"):
        decode_clip(tmp_path, [0.5])


def test_a_file_that_may_not_be_read_is_not_called_damaged() -> None:
    for kind, said in ((errno.EACCES, "cannot be read"), (errno.EINVAL, "truncated, damaged or no video")):
        with pytest.raises(VideoError, match=rf"^a\.mp4: {said} \("), _errors_of("a.mp4"):
            raise av.error.FFmpegError(kind, os.strerror(kind))
