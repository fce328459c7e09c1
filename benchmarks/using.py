"""How fast many videos, a long one, a live one, a command's start and names are: by the commands' own code.

    python -m benchmarks.using many --checkpoint RUN --list LIST [--chunk 100]
    python -m benchmarks.using long --checkpoint RUN --list LIST [--length 1min 20min]
    python -m benchmarks.using live --checkpoint RUN|alt_b16 --list LIST|--film 1280x720 [--length 1min]
    python -m benchmarks.using start --checkpoint RUN --list LIST
    python -m benchmarks.using names --checkpoint RUN|alt_b16

many: videos/s of `classify LIST --out`, beside `evaluate` of the same videos, both with the model loaded; and of the
command as a whole, its start too, beside one started anew for every --chunk files.

long: the list's videos strung together, as often as it takes, and told in segments by a process of its own for every
length: its peak memory, its seconds without start and loading, and how many frames were encoded for how many places of
windows. Peak memory is with the model; what a decoding process shares with the one it was forked from counts in both.

live: such a video, or a film in H.264 that is made on the spot, watched by what `live` consists of, by a clock that
stands still while it works, so that it is played as fast as possible and no tick is passed over. Decoding and computing
take turns; in real time they overlap. A window has T ticks: of the default one most pictures are decoded only, of the
shortest each is decoded, encoded and judged. In place of a run a preset may be named, whose weights are random: speed
does not depend on them.

start: seconds of `classify` of the list's first video, as a process: by PyTorch, with --compile for the first time
(every round has an empty cache), and with --compile again, which finds its code there.

names: class names embedded per second, alone, without prompts, of a run or 400 of a preset, beside open_clip's own way,
which computes the padding too; and by how much the embeddings differ.

Contestants run in turn, round by round, each time another one first, but those of start; figures are quartiles (low,
median, high).
"""

import argparse
import io
import os
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from itertools import accumulate
from math import ceil
from pathlib import Path
from subprocess import run

import torch
from torch import Tensor

from alt_fast import classify, cli, evaluate
from alt_fast.data.annotations import read_list
from alt_fast.data.capture import Capture
from alt_fast.data.config import AugmentConfig, Loading
from alt_fast.data.decode import VideoError, index_video
from alt_fast.data.find import find_videos
from alt_fast.distributed import World, pick_device
from alt_fast.errors import ArgumentError, RunError
from alt_fast.inference.speed import computing, computing_beside
from alt_fast.inference.stream import WINDOW, Recogniser, Watch
from alt_fast.inference.trained import TrainedModel, load
from alt_fast.measure.lines import Row, append_row, check_rows
from alt_fast.measure.timing import Race, in_turn
from alt_fast.model.config import PRESETS
from alt_fast.model.text import TextTower
from benchmarks.apart import apart, children_peak_bytes, peak_bytes
from benchmarks.audit import CLASSES, make_model
from benchmarks.clock import SharedClock
from benchmarks.live_agreement import string
from benchmarks.rounds import measure, quartiles, show
from benchmarks.videos import RATE, parse_size, write_video


def command(arguments: Sequence[str], **environment: str) -> None:
    """Run `alt-fast classify` in a process, with these variables. Raises RunError with its last words."""
    words = [sys.executable, "-m", "alt_fast", "classify", *arguments]
    done = run(words, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise RunError(f"alt-fast classify exits with {done.returncode}: {last}")


def many(options: argparse.Namespace) -> Row:
    """Race classify's and evaluate's own code, and whole commands."""
    model = ["--checkpoint", options.checkpoint, "--workers", str(options.workers), "--timeout", str(options.timeout)]
    root = ["--root", options.root] if options.root else []
    tested = evaluate.make_parser().parse_args(["--list", options.list, *root, *model])
    with tempfile.TemporaryDirectory() as folder, cli.load_tested(tested) as (trained, testing):
        out = Path(folder, "results.csv")
        videos, names = read_list(options.list, trained.classes, options.root, "test")
        paths = [str(video.path) for video in videos]
        chunks = [paths[start : start + options.chunk] for start in range(0, len(paths), options.chunk)]
        given = classify.make_parser().parse_args([options.list, *root, *model, "--out", str(out)])

        def write() -> None:
            with redirect_stdout(io.StringIO()):
                failed = classify.write_file(given, trained, [video.path for video in videos], None, testing, World())
            out.unlink()
            if failed:
                raise RunError(f"{options.list} has videos that cannot be read: alt-fast data check names them")

        def commands(groups: list[list[str]]) -> None:
            for group in groups:
                command([*group, *model, "--out", str(out)])
                out.unlink()

        race, anew = Race(), f"a command for every {options.chunk}"
        race.add("classify", write, "cpu")
        race.add("evaluate", lambda: evaluate.score(options.list, videos, names, trained, testing, World()), "cpu")
        race.add("one command", partial(commands, [[options.list, *root]]), "cpu")
        race.add(anew, partial(commands, chunks), "cpu")
        if race.skipped:
            raise RunError("; ".join(f"{name}: {cause}" for name, cause in race.skipped.items()))
        for name in in_turn(race.contestants, options.rounds):
            race.run(name)
    rates = {name: quartiles(len(videos) / each for each in seconds) for name, seconds in race.seconds.items()}
    pairs = {"classify": "evaluate", "one command": anew}
    ratios = {f"{name} beside {other}": race.ratio(other, name) for name, other in pairs.items()}
    for name, rate in rates.items():
        show(name, {"videos/s": rate})
    for name, ratio in ratios.items():
        show(name, {"x": ratio})
    sizes = {"videos": len(videos), "workers": options.workers, "chunk": options.chunk}
    return {**sizes, "videos_per_second": rates, "ratio": ratios, "seconds": race.seconds}


def make_tape(options: argparse.Namespace, length: float, path: Path) -> None:
    """String the list's videos together, again from the first one if need be, until they last so many seconds."""
    videos = find_videos([options.list], options.root)
    durations = [index_video(video).duration for video in videos]
    total = sum(durations)
    if not total:
        raise VideoError(videos[0], "neither it nor any other of the list tells how long it is")
    again = ceil(length / total)
    ends = list(accumulate(again * durations))
    string((again * videos)[: bisect_left(ends, length) + 1], path)


def tell(checkpoint: str, tape: Path, loading: Loading) -> Row:
    """Find the segments of a video; returns what that took, all in all, of this process."""
    trained = load(checkpoint)
    with computing(trained.model, loading.workers):
        start = time.perf_counter()
        found = trained.find_segments(tape, loading=loading)
        seconds = time.perf_counter() - start
    return {
        "windows": found.windows,
        "places": found.windows * trained.spec.num_frames,
        "encoded": found.encoded,
        "seconds": seconds,
        "peak_mib": peak_bytes() / 2**20,
        "decoder_peak_mib": children_peak_bytes() / 2**20,
    }


def long(options: argparse.Namespace) -> Row:
    """Tell videos of several lengths in segments, each in a process of its own."""
    loading = Loading(workers=options.workers, timeout=options.timeout)
    contestants: dict[str, Callable[[], Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for length in options.length:
            tape = Path(folder, f"{length:g}.mkv")
            make_tape(options, length, tape)
            contestants[f"{length / 60:g} min"] = partial(apart, tell, options.checkpoint, tape, loading)
        rows = measure(contestants, options.rounds)
    for name, row in rows.items():
        show(name, row)
    return {"workers": options.workers, "lengths": rows}


def play(recogniser: Recogniser, tape: Path, window: float | None, rate: float) -> Row:
    """Play a file of `rate` pictures/s to `live`; returns its counts, and what it took. window: seconds; None: default.

    judged: pictures that were encoded as the newest of a window; those before the first window are not among them.
    """
    clock, ending = SharedClock(), threading.Event()
    start, cpu = time.perf_counter(), time.process_time()
    with Capture(str(tape), clock=clock) as capture:
        watch = Watch(recogniser, capture, window, clock, ending)
        clock.wait(ending, 0.5 / rate)  # ticks are between pictures
        judged = len({judgement.picture.number for judgement in watch if judgement is not None})
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return {
        "decoded": capture.received,
        "judged": judged,
        "passed_over": watch.passed_over,
        "decoded_per_second": capture.received / seconds,
        "judged_per_second": judged / seconds,
        "cpu_seconds_per_picture": cpu_seconds / capture.received,
    }


def load_or_make(checkpoint: str) -> TrainedModel:
    """The model of a run, or a random one of a preset's name."""
    if checkpoint not in PRESETS:
        return load(checkpoint)
    names = [f"action {i}" for i in range(CLASSES)]
    return TrainedModel(make_model(PRESETS[checkpoint]), names, ["{}"], AugmentConfig())


def live(options: argparse.Namespace) -> Row:
    """Play a file by the default window, and by the one in which every picture is a tick.

    --checkpoint takes a preset's name too, as alt_b16, for random weights.
    """
    if options.length < WINDOW:
        raise ArgumentError(f"--length must be at least a window, {WINDOW:g} s, got {options.length:g} s")
    with tempfile.TemporaryDirectory() as folder, computing_beside(1):
        trained = load_or_make(options.checkpoint).to(pick_device(options.device))
        recognisers, tape = {"": Recogniser(trained)}, Path(folder, "tape.mkv")
        if options.cuda_graphs:
            recognisers[", CUDA graphs"] = Recogniser(trained, cuda_graphs=True)
        if options.film:
            write_video(tape, "libx264", 0, options.film, round(RATE * options.length))
        else:
            make_tape(options, options.length, tape)
        rate = index_video(tape).rate
        assert rate is not None  # `string` gives it one
        windows = {"default window": None, "every picture": trained.spec.num_frames / rate}
        contestants = {
            f"{name}{way}": partial(play, recogniser, tape, window, rate)
            for name, window in windows.items()
            for way, recogniser in recognisers.items()
        }
        rows = measure(contestants, options.rounds)
    for name, row in rows.items():
        show(name, row)
    sizes = {"clip_frames": trained.spec.num_frames, "film": options.film, "pictures_per_second_of_file": rate}
    return {**sizes, "windows": rows}


def start(options: argparse.Namespace) -> Row:
    """Start classify anew for one video: without --compile, with it, and with it again."""
    video = str(find_videos([options.list], options.root)[0])
    given = [video, "--checkpoint", options.checkpoint, "--workers", str(options.workers)]
    given += ["--timeout", str(options.timeout)]
    contestants = {"PyTorch": given, "--compile": [*given, "--compile"], "--compile again": [*given, "--compile"]}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name, arguments in contestants.items():
                begin = time.perf_counter()
                command(arguments, TORCHINDUCTOR_CACHE_DIR=cache)
                seconds[name].append(time.perf_counter() - begin)
    for name, each in seconds.items():
        show(name, {"seconds": quartiles(each)})
    return {"workers": options.workers, "seconds": seconds}


def names(options: argparse.Namespace) -> Row:
    """Embed class names by the model's text tower, and as open_clip does. --checkpoint takes a preset's name too."""
    trained = load_or_make(options.checkpoint)
    text, classes = trained.model.text, trained.classes
    ours, theirs = text(classes), plainly(text, classes)

    def rate(embed: Callable[[], Tensor]) -> Row:
        begin = time.perf_counter()
        embed()
        return {"names_per_s": len(classes) / (time.perf_counter() - begin)}

    contestants = {"alt-fast": lambda: text(classes), "open_clip": lambda: plainly(text, classes)}
    rows = measure({name: partial(rate, embed) for name, embed in contestants.items()}, options.rounds)
    for name, row in rows.items():
        show(name, row)
    return {"names": len(classes), "difference": (ours - theirs).abs().max().item(), "ways": rows}


@torch.no_grad()
def plainly(text: TextTower, names: Sequence[str]) -> Tensor:
    """Embed names, all of their padding too."""
    parts = text.tokenizer(list(names)).split(256)
    return torch.cat([text.clip.encode_text(part, normalize=True) for part in parts])


PARTS: dict[str, Callable[[argparse.Namespace], Row]] = {
    "many": many,
    "long": long,
    "live": live,
    "start": start,
    "names": names,
}


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    title = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.using", description=title)
    parts = parser.add_subparsers(dest="part", required=True)
    for name, function in PARTS.items():
        part = parts.add_parser(name, description=function.__doc__)
        cli.add_checkpoint(part)
        part.add_argument("--rounds", type=int, default=5, help="at least 2 (default 5)")
        part.add_argument("--out", type=Path, metavar="FILE", help="also add a row to this file, JSON lines")
        if name == "names":
            continue
        played = part.add_mutually_exclusive_group(required=True)
        played.add_argument(
            "--list", metavar="LIST", help="videos; long and live string them together, start takes the first"
        )
        part.add_argument("--root", metavar="DIR", help="folder that video paths start from; default: the list's")
        if name == "many":
            part.add_argument("--chunk", type=int, default=100, metavar="N", help="files of a command (default 100)")
        elif name == "long":
            part.add_argument("--length", type=cli.seconds, nargs="+", default=[60, 1200], help="default: 1min 20min")
        elif name == "live":
            part.add_argument("--length", type=cli.seconds, default=60, help="of what is played (default 1min)")
            played.add_argument(
                "--film",
                type=parse_size,
                metavar="WIDTHxHEIGHT",
                help="in place of --list: 30 pictures a second, in H.264",
            )
            cli.add_device(part)
            cli.add_cuda_graphs(part)
        if name != "live":
            cli.add_workers(part)
    return parser


def work(options: argparse.Namespace) -> int:
    """Measure one part, print it, and write it with the machine it was measured on."""
    for name, least in (("rounds", 2), ("chunk", 1)):
        if getattr(options, name, least) < least:
            raise ArgumentError(f"--{name} must be at least {least}, got {getattr(options, name)}")
    check_rows(options.out)
    row = PARTS[options.part](options)
    if options.out is not None:
        checked = {"using": options.part, "checkpoint": options.checkpoint, "list": getattr(options, "list", None)}
        append_row(options.out, {**checked, "rounds": options.rounds, **row})
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
