"""In how many windows `alt-fast live` says what `alt-fast classify` says of a clip that is cut there.

    python -m benchmarks.live_agreement --checkpoint RUN --list LIST [--window 2s] [--out FILE.jsonl]

The listed videos are strung together, in an order drawn by --seed. What `live` consists of watches them, by a clock
that stands still while it works, so that no tick is passed over. The pictures of every window are cut out as a file,
without loss, and classified. Its frames need not be those of `live`, which takes what is shown in the middle of a
window's equal parts by the clock, while `classify` counts pictures; they are where a part is a whole number of these.
"""

import argparse
import bisect
import random
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.video.stream import VideoStream

from alt_fast import cli
from alt_fast.data.capture import Capture
from alt_fast.data.config import Loading
from alt_fast.data.decode import Frames, VideoError, VideoIndex, decode_frames, index_video
from alt_fast.data.find import find_videos
from alt_fast.errors import ArgumentError
from alt_fast.inference.scoring import EvalConfig
from alt_fast.inference.stream import WINDOW, Recogniser, Watch
from alt_fast.inference.trained import TrainedModel, load
from alt_fast.measure.lines import Row, append_row, check_rows
from benchmarks.clock import SharedClock

TOGETHER = 32  # clips that are cut and classified at once

Timed = tuple[Fraction, Frames]
"""A picture, uint8 RGB [H, W, 3], and when it is shown, in seconds."""


@dataclass(frozen=True)
class Window:
    """What `live` said of the pictures with these numbers."""

    numbers: range
    label: str


def write(path: Path, pictures: Iterable[Timed], rate: Fraction) -> None:
    """Write pictures of one size without loss. rate: per second, about."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=rate)
        assert isinstance(stream, VideoStream)
        stream.pix_fmt, stream.codec_context.time_base = "bgr0", Fraction(1, 1000)  # as Matroska counts
        for time, picture in pictures:
            if not stream.codec_context.is_open:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def string(videos: Sequence[Path], path: Path) -> None:
    """Write videos of one size behind each other, each picture as long as it was shown. Raises VideoError."""
    indices = [index_video(video) for video in videos]
    for video, index in zip(videos, indices, strict=True):
        if index.tick is None:
            raise VideoError(video, "neither its frames nor its header tell when they are shown")

    def pictures() -> Iterator[Timed]:
        offset, size = Fraction(0), None
        for video, index in zip(videos, indices, strict=True):
            frames = decode_frames(video, index, range(index.count))
            size = size or frames.shape[1:3]
            if frames.shape[1:3] != size:
                raise VideoError(
                    video, "its pictures are {} x {}, those before {} x {}".format(*frames.shape[1:3], *size)
                )
            yield from ((offset + index.time_of(number), frame) for number, frame in enumerate(frames))
            offset += index.duration

    count, length = sum(index.count for index in indices), sum((index.duration for index in indices), Fraction(0))
    write(path, pictures(), count / length)


def watch(recogniser: Recogniser, tape: Path, index: VideoIndex, window: float) -> list[Window]:
    """Play a file to `live`; returns what it said of every window that the file holds whole. window: seconds.

    A window's ticks are in the middle of its T equal parts, so it ends half a part after its last one.
    """
    clock, found = SharedClock(), []
    half = window / recogniser.clip_frames / 2
    with Capture(str(tape), clock=clock) as capture:
        watched = Watch(recogniser, capture, window, clock, threading.Event())
        for judgement in watched:
            if judgement is None:
                continue
            end = clock.now() - (judgement.picture.time - judgement.time) + half
            if end - window >= 0 and end <= index.duration:
                numbers = range(first_after(index, end - window), first_after(index, end))
                found.append(Window(numbers, judgement.labels[0][0]))
    assert watched.passed_over == 0
    return found


def first_after(index: VideoIndex, seconds: float) -> int:
    """Number of the first picture whose middle comes later, where all are shown as long; their count for none."""
    half, time = index.duration / index.count / 2, Fraction(round(1000 * seconds), 1000)
    return bisect.bisect_right(range(index.count), time, key=lambda number: index.time_of(number) + half)


def classify_cuts(
    trained: TrainedModel, tape: Path, index: VideoIndex, windows: Sequence[Window], loading: Loading
) -> list[str]:
    """Cut every window out of a file and classify it; returns the labels."""
    found = []
    for start in range(0, len(windows), TOGETHER):
        some = windows[start : start + TOGETHER]
        with tempfile.TemporaryDirectory() as folder:
            clips = [Path(folder, f"{place:02}.mkv") for place in range(len(some))]
            for clip, window in zip(clips, some, strict=True):
                frames = decode_frames(tape, index, window.numbers)
                times = (index.time_of(number) - index.time_of(window.numbers[0]) for number in window.numbers)
                write(clip, zip(times, frames, strict=True), Fraction(index.rate or 1).limit_denominator(1000))
            predictions = trained.classify(clips, top_k=1, testing=EvalConfig(TOGETHER, loading=loading))
        found += [prediction[0][0] for prediction in predictions]
    return found


def compare(windows: Sequence[Window], labels: Sequence[str], index: VideoIndex) -> Row:
    """Count the windows of which `live` said what the labels say, and list the others, by their ends in seconds."""
    differ = [
        {"time": round(float(index.time_of(window.numbers[-1])), 3), "live": window.label, "clip": label}
        for window, label in zip(windows, labels, strict=True)
        if window.label != label
    ]
    return {"windows": len(windows), "same": len(windows) - len(differ), "differ": differ}


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.live_agreement", description=(__doc__ or "").partition("\n")[0]
    )
    cli.add_checkpoint(parser)
    parser.add_argument("--list", required=True, metavar="LIST", help="videos to string together")
    parser.add_argument("--root", metavar="DIR", help="folder that video paths start from; default: the list's")
    parser.add_argument("--window", type=cli.seconds, default=WINDOW, metavar="TIME", help=f"default {WINDOW:g} s")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="draws the order of the videos (default 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also add a row to this file, JSON lines")
    cli.add_workers(parser)
    return parser


def work(options: argparse.Namespace) -> int:
    """Print the share, and the windows of which they say two things."""
    check_rows(options.out)
    trained = load(options.checkpoint)
    videos = find_videos([options.list], options.root)
    random.Random(options.seed).shuffle(videos)
    with tempfile.TemporaryDirectory() as folder:
        tape = Path(folder, "tape.mkv")
        string(videos, tape)
        index = index_video(tape)
        windows = watch(Recogniser(trained), tape, index, options.window)
        loading = Loading(workers=options.workers, timeout=options.timeout)
        labels = classify_cuts(trained, tape, index, windows, loading)
    if not windows:
        raise ArgumentError(f"no window of {options.window:g} s fits into the {len(videos)} videos")
    row = {"live_agreement": options.checkpoint, "list": options.list, "videos": len(videos), "seed": options.seed}
    row |= {"window": options.window, **compare(windows, labels, index)}
    print(f"the same top-1 in {row['same']} of {row['windows']} windows: {row['same'] / row['windows']:.1%}")
    for differing in row["differ"]:
        print(f"{differing['time']:8.2f} s  live: {differing['live']}  clip: {differing['clip']}")
    if options.out is not None:
        append_row(options.out, row)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
