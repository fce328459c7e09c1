"""Name the action in front of a camera, or in any other stream, as it happens.

alt-fast live /dev/video0 --checkpoint runs/mine --labels "waving" "sitting" "drinking"
alt-fast live rtsp://192.168.1.20/stream --checkpoint runs/mine --page 8000
alt-fast live /dev/video0 --head clip --labels "waving" "sitting" "drinking"
ffmpeg -i ... -f mpegts - | alt-fast live - --checkpoint runs/mine --json
"""

import argparse
import json
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from alt_fast import cli
from alt_fast.errors import ArgumentError

if TYPE_CHECKING:
    from PIL.Image import Image

    from alt_fast.data.capture import Capture, Clock
    from alt_fast.inference.stream import Judgement, Recogniser, Watch
    from alt_fast.report.live import LivePage

STATUS_EVERY, LINE_EVERY = 1.0, 30.0  # seconds between looks at how it goes, and between lines outside a terminal
CLEAR = "\r\x1b[K"  # the terminal's present line
NOTHING_SEEN = "nothing to see: every picture is of one colour"


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = cli.make_parser(
        "live",
        "Name the action in a stream as it happens: a line whenever the likeliest one changes. Ctrl-C ends it.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="camera as /dev/video0; address as rtsp://, http://, udp:// or tcp://; file, played in real time; - for "
        "standard input",
    )
    cli.add_checkpoint(parser, required=False)
    cli.add_labels(parser)
    cli.add_texts(parser)
    cli.add_corpus(parser)
    cli.add_r(parser)
    cli.add_rotary(parser)
    cli.add_head(parser)
    cli.add_clip(parser)
    cli.add_device(parser)
    cli.add_compile(parser)
    cli.add_cuda_graphs(parser)
    parser.add_argument(
        "--window", type=cli.seconds, metavar="TIME", help="time that a clip's frames span, as 4s or 800ms (default 4s)"
    )
    parser.add_argument(
        "--every", type=cli.seconds, metavar="TIME", help="print at such intervals (default: when the label changes)"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="labels to print (default: 1, all with --json)")
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object a line, with all there is, for every clip or --every"
    )
    parser.add_argument(
        "--page", type=int, metavar="PORT", help="serve a page that shows it, to browsers on this machine; 0: any port"
    )
    parser.add_argument(
        "--host", metavar="NAME", help="serve the page on this address instead, to who has the token in its URL"
    )
    parser.add_argument(
        "--timeout", type=cli.seconds, default=10.0, metavar="TIME", help="silence after which an address is lost (10s)"
    )
    return parser


def say(line: str) -> None:
    """Print a line on standard error, over the status where there is one."""
    print(f"{CLEAR}{line}" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


class Status:
    """How it goes, in a line: latency, rates since the line before or from the start, and counts from the start."""

    def __init__(self, capture: "Capture", watch: "Watch", clock: "Clock") -> None:
        self.latency: float | None = None  # seconds from a picture to what was printed of it, of the last one
        self._capture, self._watch, self._clock = capture, watch, clock
        self._start = self._before = self._now()

    def _now(self) -> tuple[float, int, int]:
        return self._clock.now(), self._capture.received, self._watch.judged

    @property
    def age(self) -> float:
        """Seconds since the line before."""
        return self._clock.now() - self._before[0]

    def line(self) -> str:
        """Return the line, with rates since the line before."""
        before, self._before = self._before, self._now()
        return self._line(before, self._before)

    def summary(self) -> str:
        """Return the line, with rates from the start."""
        return self._line(self._start, self._now())

    def _line(self, since: tuple[float, int, int], until: tuple[float, int, int]) -> str:
        seconds, received, judged = (now - then for now, then in zip(until, since, strict=True))
        latency = "nothing judged yet" if self.latency is None else f"latency {1000 * self.latency:.0f} ms"
        rates = f"{received / max(seconds, 1e-9):.1f} pictures/s, {judged / max(seconds, 1e-9):.1f} judged/s"
        capture, ticks = self._capture, self._watch.passed_over
        counts = f"{capture.passed_over} pictures and {ticks} ticks passed over, {capture.left_out} left out"
        counts = f"{counts}, {capture.damaged} damaged"
        return f"{latency}, {rates}; {counts}, lost {capture.lost} times"


class Output:
    """Prints judgements, and on standard error how it goes; a page shows both."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        recogniser: "Recogniser",
        status: Status,
        clock: "Clock",
        page: "LivePage | None",
    ) -> None:
        self._every, self._json = arguments.every, arguments.json
        self._top_k = arguments.top_k if arguments.top_k is not None or self._json else 1
        self._recogniser, self._status, self._clock, self._page = recogniser, status, clock, page
        self._terminal = sys.stderr.isatty()
        self._printed: str | None = None  # label of the last judgement that was
        self._due: float | None = None  # the tick from which on the next one is
        self._said = clock.now()
        self._blank = self._unfinished = False  # what was seen last is of one colour; the status stands in its line

    def show(self, judgement: "Judgement | None", blank: bool = False) -> None:
        """Print a judgement where it is news, and how it goes where that is due. blank: there is nothing to judge."""
        if blank and not self._blank:
            say(NOTHING_SEEN)
            self._printed, self._unfinished, self._due = None, False, None
            if self._page is not None:
                self._page.tell(NOTHING_SEEN)
        self._blank = blank
        if judgement is not None:
            if self._is_news(judgement):
                self._print(judgement)
            self._status.latency = self._clock.now() - judgement.picture.time
            if self._page is not None:
                self._page.show(judgement.time, judgement.labels, lambda: self._look(judgement))
        if self._status.age >= STATUS_EVERY:
            line = self._status.line()
            if self._terminal:
                self._say(line[: shutil.get_terminal_size().columns - 1])  # CLEAR reaches no line above
            elif self._clock.now() - self._said >= LINE_EVERY:
                self._say(line)
            if self._page is not None:
                self._page.tell(line)

    def end(self) -> None:
        """Print how it went, all in all."""
        self._say(self._status.summary())

    def close(self) -> None:
        """Leave the terminal's line to others."""
        if self._unfinished:
            print(file=sys.stderr)

    def _say(self, line: str) -> None:
        self._said, self._unfinished = self._clock.now(), self._terminal
        print(
            f"{CLEAR}{line}" if self._terminal else line,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def _is_news(self, judgement: "Judgement") -> bool:
        if self._every is not None:
            return self._due is None or judgement.tick > self._due - 1e-6  # both are sums of fractions
        return self._json or judgement.labels[0][0] != self._printed

    def _print(self, judgement: "Judgement") -> None:
        self._printed = judgement.labels[0][0]
        if self._every is not None:  # in step, though a tick may come late or be passed over
            due = judgement.tick if self._due is None else self._due
            self._due = due + self._every * (1 + max(0.0, (judgement.tick - due + 1e-6) // self._every))
        labels = judgement.labels[: self._top_k]
        if self._json:
            row = {
                "time": round(judgement.time, 3),
                "labels": [{"label": label, "probability": p} for label, p in labels],
                "entities": [asdict(share) for share in self._recogniser.entities(judgement.seen)],
                "latency": round(self._clock.now() - judgement.picture.time, 4),
            }
            line = json.dumps(row)
        else:
            line = f"{judgement.time:8.1f} s" + "".join(f"  {p:6.1%}  {label}" for label, p in labels)
        if self._terminal:  # the status makes room
            print(CLEAR, end="", file=sys.stderr, flush=True)
            self._unfinished = False
        print(line, flush=True)

    def _look(self, judgement: "Judgement") -> "tuple[dict[str, Any], Image]":
        """Return what the page draws of a judgement, and the picture."""
        from PIL import Image

        recogniser, seen = self._recogniser, judgement.seen
        drawn = {
            "grid": recogniser.trained.model.encoder.visual.grid_size,
            "regions": seen.source[0, 1:].tolist(),
            "tokens": recogniser.token_entities(seen),
            "entities": [(share.entity, share.share) for share in recogniser.entities(seen)],
        }
        return drawn, Image.fromarray(recogniser.crop(judgement.picture.rgb()))


@contextmanager
def until_asked() -> Iterator[threading.Event]:
    """Give an event that is set by Ctrl-C or SIGTERM; the second time they do what they did before."""
    ending = threading.Event()

    def end(number: int, frame: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        threading.Thread(target=ending.set).start()  # not here: the thread that is interrupted may hold its lock

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(arguments: argparse.Namespace) -> int:
    """Recognise until the source ends or somebody asks."""
    from alt_fast.data.annotations import read_labels
    from alt_fast.data.capture import Capture, WallClock
    from alt_fast.data.decode import VideoError
    from alt_fast.inference.speed import computing_beside
    from alt_fast.inference.stream import Recogniser, Watch
    from alt_fast.report.live import LivePage

    if arguments.host is not None and arguments.page is None:
        raise ArgumentError("--host has no effect without --page PORT")
    if arguments.top_k is not None and arguments.top_k < 1:
        raise ArgumentError(f"--top-k must be >= 1, got {arguments.top_k}")
    labels = read_labels(arguments.labels) if arguments.labels else None
    clock = WallClock()
    with ExitStack() as stack:
        stack.enter_context(computing_beside(1))
        trained = cli.open_model(arguments)
        trained.use_texts(arguments.texts, labels)
        recogniser = Recogniser(trained, labels, arguments.head, arguments.cuda_graphs)
        capture = stack.enter_context(Capture(arguments.source, arguments.timeout, say, clock))
        page = None
        if arguments.page is not None:
            page = stack.enter_context(LivePage(arguments.page, arguments.host, capture.name))
            print(f"page: {page.address}", file=sys.stderr, flush=True)
        ending = stack.enter_context(until_asked())
        watch = Watch(recogniser, capture, arguments.window, clock, ending)
        output = Output(arguments, recogniser, Status(capture, watch, clock), clock, page)
        stack.callback(output.close)
        say(f"{capture.name}: waiting for its first picture")
        for judgement in watch:
            output.show(judgement, watch.blank)
        output.end()
        if not watch.judged and not ending.is_set():
            short = f"it ended before a window of {watch.window:g} s was full: ask for a shorter --window"
            raise VideoError(capture.name, NOTHING_SEEN if watch.blank else short)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
