"""Memory and seconds of a clip from large films: cut a frame at a time, as readers do, and whole frames cut at once.

    python -m benchmarks.clips [--size 1920x1080 3840x2160] [--frames 32] [--rounds 5] [--out FILE]

Each clip is read by a process of its own with one thread, from a film twice as long, in H.264, made on the spot.
Memory is the peak beyond what a clip of a small film takes, libraries included. The two read the same pixels.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from alt_fast import cli
from alt_fast.data.augment import cut, view_record
from alt_fast.data.config import AugmentConfig
from alt_fast.data.decode import decode_clip
from alt_fast.data.pyav import read_clip
from alt_fast.errors import ArgumentError
from alt_fast.measure.lines import Row, append_row, check_rows
from benchmarks.apart import apart, peak_bytes
from benchmarks.rounds import measure, show
from benchmarks.videos import parse_size, write_video

SIDE = 224  # of a clip's frames, pixels
BY_FRAME, AT_ONCE = "a frame at a time", "whole frames, cut at once"


def read(path: Path, frames: int, way: str) -> NDArray[np.uint8]:
    """Return a clip of the whole film, uint8 [T, 3, SIDE, SIDE]."""
    record = view_record(AugmentConfig(), frames)
    if way == BY_FRAME:
        return read_clip(path, record, (SIDE, SIDE))
    return cut(record, decode_clip(path, record.positions), (SIDE, SIDE)).numpy()


def take(small: Path, path: Path, frames: int, way: str) -> Row:
    """Return MiB beyond those of a small film, and seconds, of one clip in this process."""
    torch.set_num_threads(1)
    read(small, 2, way)
    before, start = peak_bytes(), time.perf_counter()
    read(path, frames, way)
    return {"mib": (peak_bytes() - before) / 2**20, "seconds": time.perf_counter() - start}


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    title = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clips", description=title)
    parser.add_argument(
        "--size", type=parse_size, nargs="+", default=[(1920, 1080), (3840, 2160)], metavar="WIDTHxHEIGHT"
    )
    parser.add_argument("--frames", type=int, default=32, metavar="T", help="of a clip (default 32)")
    parser.add_argument("--rounds", type=int, default=5, help="at least 2 (default 5)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also add a row for every size, JSON lines")
    return parser


def work(options: argparse.Namespace) -> int:
    """Measure each size, print it, and write it with the machine it was measured on."""
    for name, least in (("frames", 1), ("rounds", 2)):
        if getattr(options, name) < least:
            raise ArgumentError(f"--{name} must be at least {least}, got {getattr(options, name)}")
    check_rows(options.out)
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder, "small.mp4")
        write_video(small, "libx264", 0, frames=2)
        for width, height in options.size:
            path = Path(folder, f"{width}x{height}.mp4")
            write_video(path, "libx264", 0, (width, height), 2 * options.frames)
            ways = {way: partial(apart, take, small, path, options.frames, way) for way in (BY_FRAME, AT_ONCE)}
            rows = measure(ways, options.rounds)
            for way, row in rows.items():
                show(f"{width} x {height}, {options.frames} frames, {way}", row)
            if options.out is not None:
                sizes = {"size": [width, height], "frames": options.frames, "rounds": options.rounds}
                append_row(options.out, {**sizes, "ways": rows})
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
