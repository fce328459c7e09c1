"""Recognising a stream from the command line: what is printed, how it ends, and what is refused."""

import io
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest
import torch

from alt_fast import create_model
from alt_fast.corpus import Corpus
from alt_fast.data.config import AugmentConfig
from alt_fast.inference.stream import Judgement
from alt_fast.inference.trained import TrainedModel, save_model
from alt_fast.live import Output, main, until_asked
from alt_fast.model.clip_weights import build_clip
from benchmarks.clock import SharedClock
from tests.conftest import NoiseWriter, VideoWriter, noise_video
from tests.processes import Command, start
from tests.streams import mpegts, serve_rtsp

LABELS = ["a star growing", "a moon growing", "surfing"]


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute of video."""
    return noise_video(tmp_path_factory.mktemp("video"), "long.mp4", "libx264", 600, options={"preset": "ultrafast"})


def command(run: Path, source: object, *more: str) -> list[str]:
    return [str(source), "--checkpoint", str(run), "--labels", *LABELS, *more]


@pytest.fixture
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds pass when nobody works, and are not waited for."""
    monkeypatch.setattr("alt_fast.data.capture.WallClock", SharedClock)


@pytest.mark.usefixtures("in_no_time")
def test_lines_when_the_label_changes(
    trained_run: Path, write_noise: NoiseWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_noise("a.mp4", "libx264", frames=12)
    assert main(command(trained_run, path, "--window", "400ms")) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    found = [re.fullmatch(r" {5}(\d\.\d) s   \d\d\.\d%  (.*)", line) for line in lines]
    assert all(found)
    labels = [match[2] for match in found if match]
    assert set(labels) <= set(LABELS)
    assert all(one != other for one, other in pairwise(labels))
    waiting, status = err.splitlines()
    assert waiting == f"{path}: waiting for its first picture"
    assert re.search(
        r"latency \d+ ms, .* pictures/s, .* judged/s; \d+ pictures and \d+ ticks passed over, 0 left out, 0 d", status
    )


@pytest.mark.usefixtures("in_no_time")
def test_the_last_line_is_of_the_whole_time(
    trained_run: Path, write_noise: NoiseWriter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However lately how it goes was said."""
    monkeypatch.setattr("alt_fast.live.STATUS_EVERY", 0.01)
    path = write_noise("a.mp4", "libx264", frames=12)
    assert main(command(trained_run, path, "--window", "400ms")) == 0
    (rates,) = re.findall(r"([\d.]+) pictures/s, ([\d.]+) judged/s", capsys.readouterr().err)
    assert all(float(rate) > 1 for rate in rates)


@pytest.mark.usefixtures("in_no_time")
def test_a_clip_that_was_not_trained(
    write_noise: NoiseWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "clip.pt"
    torch.save(build_clip("tiny").state_dict(), weights)
    source = str(write_noise("a.mp4", "libx264", frames=20))
    bare = [source, "--head", "clip", "--backbone", "tiny", "--pretrained", str(weights), "--window", "800ms"]
    assert main([*bare, "--labels", *LABELS, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {found["label"] for row in rows for found in row["labels"]} == set(LABELS)
    assert rows[0]["entities"] == []
    assert main(bare) == 2
    assert "--head clip without a checkpoint needs --labels" in capsys.readouterr().err


@pytest.mark.usefixtures("in_no_time")
def test_json_holds_every_clip_with_all_there_is(
    trained_run: Path, write_noise: NoiseWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_noise("a.mp4", "libx264", frames=12)
    assert main(command(trained_run, path, "--window", "400ms", "--json")) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert 5 <= len(rows) <= 6
    assert [row["time"] for row in rows] == sorted({row["time"] for row in rows})
    for row in rows:
        assert {found["label"] for found in row["labels"]} == set(LABELS)
        assert sum(found["probability"] for found in row["labels"]) == pytest.approx(1)
        assert sum(share["share"] for share in row["entities"]) == pytest.approx(1)
        assert 0 <= row["latency"] <= 0.2


class Heard(io.StringIO):
    """Standard output that tells when something is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.something = threading.Event()

    def write(self, text: str) -> int:
        self.something.set()
        return super().write(text)


def test_standard_input_until_its_writer_ends(
    trained_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of `ffmpeg ... | alt-fast live -`."""
    read, write = os.pipe()
    out = Heard()
    monkeypatch.setattr("sys.stdout", out)

    def send() -> None:
        with os.fdopen(write, "wb") as pipe:
            stream = mpegts(2000)
            for first in range(0, len(stream), 1024):  # a picture or two
                pipe.write(stream[first : first + 1024])
                pipe.flush()
                if out.something.wait(0.02):
                    return

    with os.fdopen(read, "rb") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        sender = threading.Thread(target=send)
        sender.start()
        assert main(command(trained_run, "-", "--window", "400ms", "--json")) == 0
        sender.join()
    lines = out.getvalue().splitlines()
    assert {found["label"] for line in lines for found in json.loads(line)["labels"]} == set(LABELS)
    assert "-: waiting for its first picture" in capsys.readouterr().err


@pytest.mark.usefixtures("in_no_time")
def test_every_so_often_the_likeliest_ones(
    trained_run: Path, write_noise: NoiseWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_noise("a.mp4", "libx264", frames=16)
    assert main(command(trained_run, path, "--window", "200ms", "--every", "0.5", "--top-k", "2")) == 0
    lines = capsys.readouterr().out.splitlines()
    times = [float(line.split(" s ")[0]) for line in lines]
    assert 3 <= len(lines) <= 4
    gaps = [round(later - sooner, 1) for sooner, later in pairwise(times)]  # of pictures: a frame off
    assert set(gaps) <= {0.4, 0.5, 0.6}
    assert all(line.count("%  ") == 2 for line in lines)


@pytest.mark.parametrize(("every", "shown"), [(0.5, 40), (1.0, 20), (0.75, 27), (0.1, 40)])
def test_intervals_keep_step_with_pictures_that_come_unevenly(
    every: float, shown: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tick's picture came up to a frame before it: intervals are between ticks."""
    status, clock = SimpleNamespace(latency=None, age=0.0), SimpleNamespace(now=lambda: 0.0)
    arguments = SimpleNamespace(every=every, json=False, top_k=None)
    output = Output(arguments, None, status, clock, None)  # type: ignore[arg-type]
    for number in range(40):
        tick = 0.5 * number
        picture: Any = SimpleNamespace(time=tick)
        output.show(Judgement([("a star growing", 1.0)], picture, None, tick + (-1) ** number / 500, tick))  # type: ignore[arg-type]
    assert len(capsys.readouterr().out.splitlines()) == shown


def test_intervals_keep_step_when_ticks_are_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    """Every second tick is due, where it is looked at; else the next one is."""
    status, clock = SimpleNamespace(latency=None, age=0.0), SimpleNamespace(now=lambda: 0.0)
    output = Output(SimpleNamespace(every=0.6, json=False, top_k=None), None, status, clock, None)  # type: ignore[arg-type]
    due, expected = 0, 0
    for number in sorted({0, *torch.randint(3000, (2000,)).tolist()}):
        picture: Any = SimpleNamespace(time=0.3 * number)
        output.show(Judgement([("a star growing", 1.0)], picture, None, 0.0, number * 0.3))  # type: ignore[arg-type]
        if number >= due:
            expected, due = expected + 1, due + 2 * (1 + (number - due) // 2)
    assert len(capsys.readouterr().out.splitlines()) == expected


def test_a_network_camera_that_falls_silent_until_it_is_to_end(
    trained_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_once_lost(line: str) -> None:
        said.append(line)
        if "lost (no data for 4 s)" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    said: list[str] = []
    monkeypatch.setattr("alt_fast.live.say", end_once_lost)
    with serve_rtsp(mpegts(40)) as address:
        assert main(command(trained_run, address, "--window", "2s", "--timeout", "4s")) == 0
    out, err = capsys.readouterr()
    assert re.match(rf" {{5}}\d\.\d s   \d\d\.\d%  ({'|'.join(LABELS)})\n", out)
    assert said == [
        f"{address}: waiting for its first picture",
        f"{address}: lost (no data for 4 s); opened again in 1 s",
    ]
    assert err.endswith("lost 1 times\n")


@pytest.fixture
def running(trained_run: Path, long: Path) -> Iterator[Command]:
    more = ["--window", "400ms", "--json", "--page", "0"]
    with start("alt_fast.live", *command(trained_run, long, *more)) as started:
        started.wait_until(lambda: started.output.count("\n") > 2)
        yield started


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_asked(running: Command, number: signal.Signals) -> None:
    running.kill(number)
    assert running.wait() == 0
    assert "Traceback" not in running.errors
    assert running.errors.splitlines()[-1].startswith("latency ")
    assert all(json.loads(line) for line in running.output.splitlines())  # the last one is whole


def test_its_page_is_there_while_it_runs(running: Command) -> None:
    found = re.search(r"page: (http://127\.0\.0\.1:\d+/)\n", running.errors)
    assert found is not None
    with urlopen(found[1], timeout=60) as page:
        assert b'{"source":"' in page.read()
    with urlopen(f"{found[1]}events", timeout=60) as events:
        told = [json.loads(line[6:]) for line in [events.readline() for _ in range(8)] if line.startswith(b"data: ")]
        running.kill(signal.SIGTERM)
        assert running.wait() == 0
    judged = [row for row in told if "labels" in row]
    assert told[0]["past"]
    assert judged
    for row in judged:
        assert row["picture"].startswith("data:image/jpeg;base64,")
        assert len(row["regions"]) == row["grid"][0] * row["grid"][1] == 36
        assert max(row["regions"]) == len(row["tokens"]) - 1
        assert sum(share for _, share in row["entities"]) == pytest.approx(1)


def test_the_second_signal_does_what_it_did_before() -> None:
    terminate, interrupt = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with until_asked() as ending:
        signal.raise_signal(signal.SIGTERM)
        assert ending.wait(10)
        assert signal.getsignal(signal.SIGTERM) == terminate
        assert signal.getsignal(signal.SIGINT) != interrupt
    assert signal.getsignal(signal.SIGINT) == interrupt


@pytest.mark.usefixtures("in_no_time")
def test_a_terminal_shows_how_it_goes_in_place(
    trained_run: Path, write_noise: NoiseWriter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alt_fast.live.STATUS_EVERY", 0.3)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    path = write_noise("a.mp4", "libx264", frames=16)
    assert main(command(trained_run, path, "--window", "200ms")) == 0
    shown = capsys.readouterr().err
    assert 4 <= shown.count("\r\x1b[Klatency") <= 6
    assert shown.count("\n") == 2  # the first line tells what it waits for
    assert shown.endswith("lost 0 times\n")
    *cut, _ = re.findall(r"latency[^\r\n]*", shown)
    assert {len(line) for line in cut} == {39}


@pytest.fixture
def of_eight_frames(corpus: Corpus, tmp_path: Path) -> Path:
    """A random model whose clips have eight frames."""
    torch.manual_seed(0)
    trained = TrainedModel(create_model("alt_tiny", corpus, frames=8, depth=1).eval(), [], ["{}"], AugmentConfig())
    save_model(tmp_path / "model.safetensors", trained)
    return tmp_path


@pytest.mark.usefixtures("in_no_time")
def test_what_is_too_short_or_of_one_colour_is_said(
    of_eight_frames: Path, write_noise: NoiseWriter, write_video: VideoWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    short, grey = write_noise("short.mp4", "libx264", frames=10), write_video("grey.mp4", frames=30)
    nothing = "nothing to see: every picture is of one colour"
    for path, window, message, said in (
        (short, "4s", "it ended before a window of 4 s was full: ask for a shorter --window", 0),
        (grey, "800ms", nothing, 1),
    ):
        assert main(command(of_eight_frames, path, "--window", window)) == 1
        out, err = capsys.readouterr()
        assert not out
        assert err.endswith(f"\nerror: {path}: {message}\n")
        assert err.splitlines().count(nothing) == said


@pytest.mark.usefixtures("in_no_time")
def test_the_terminal_s_line_is_ended_where_only_the_status_was_shown(
    of_eight_frames: Path, write_noise: NoiseWriter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(command(of_eight_frames, write_noise("short.mp4", "libx264", frames=10))) == 1
    *_, status, error = capsys.readouterr().err.split("\n")[:-1]
    assert "nothing judged yet" in status
    assert error.startswith("error: ")


def test_bad_requests(
    trained_run: Path, write_noise: NoiseWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_noise("a.mp4", "libx264", frames=10)
    for request, status, message in [
        (command(trained_run, path, "--host", "0.0.0.0"), 2, "--host has no effect without --page PORT"),
        (command(trained_run, path, "--head", "clip", "--categories", "object"), 2, "have no effect on --head clip"),
        (command(trained_run, path, "--top-k", "0"), 2, "--top-k must be >= 1, got 0"),
        (command(trained_run, path, "--window", "100ms"), 2, "the window must hold the 2 frames of a clip"),
        (command(trained_run, path, "--page", "-1"), 2, "the port of the page must be in 0 ... 65535, got -1"),
        ([*command(trained_run, path), "surfing"], 2, "labels must differ, got 'surfing' twice"),
        (command(tmp_path, path), 1, "not a run folder"),
        (command(trained_run, tmp_path / "none.mp4"), 1, "none.mp4: no such file"),
        (command(trained_run, "/dev/video97"), 1, "/dev/video97: no such camera"),
        (command(trained_run, "0"), 1, "0: no such file; a camera is /dev/video0"),
        (command(trained_run, "tcp://127.0.0.1:1"), 1, "tcp://127.0.0.1:1: Connection refused"),
    ]:
        assert main(request) == status, message
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert message in line


@pytest.mark.parametrize("text", ["0", "-1s", "4 hours", "s", "1.2.3", "nan"])
def test_lengths_of_time_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["a.mp4", "--checkpoint", "run", f"--window={text}"])
    assert left.value.code == 2
    assert f"must be a time above 0, such as 4s or 800ms, got '{text}'" in capsys.readouterr().err
