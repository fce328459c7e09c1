"""The files of a timeline: read back, as subtitles, and the page in a browser."""

import csv
import io
import json
import math
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from alt_fast.errors import ArgumentError
from alt_fast.report.page import fill_page
from alt_fast.report.timeline import Gap, Picture, Segment, Timeline, clock
from tests.browser import data_of, look, needs_browser

LABELS = ["surfing, on a wave", "</script><script>alert(1)</script>", '"跳水"\n\nand more', "never"]


def jpeg(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (level, level, level)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def timeline() -> Timeline:
    """An hour and a half, in steps of half an hour."""
    return Timeline(
        video="<b>holiday.mp4",
        duration=5400.0,
        every=1800.0,
        window=1800.0,
        windows=3,
        encoded=24,
        labels=LABELS,
        segments=[
            Segment(0.0, 1800.5, LABELS[0], 0.75, 0.9),
            Segment(12.25, 3600.0, LABELS[1], 0.5, 0.5),
            Segment(3600.0, 5400.0, LABELS[2], 0.6, 0.7),
        ],
        gaps=[Gap(1800.0, 3600.0, "damaged <i>")],
        times=np.array([0.0, 3600.0]),
        top=np.array([[0, 1], [2, 0]], np.int32),
        probability=np.array([[0.75, 0.2], [0.6, 0.3]], np.float32),
        entities=[["wave", "board"], []],
        pictures=[Picture(900.0, jpeg(10)), Picture(4500.0, jpeg(200))],
    )


def test_tables_read_back(timeline: Timeline, tmp_path: Path) -> None:
    timeline.save(tmp_path / "new" / "out.csv")
    with (tmp_path / "new" / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == LABELS[:3]
    assert rows[1] == {"start": "12.250", "end": "3600.000", "label": LABELS[1], "score": "0.5000", "peak": "0.5000"}
    timeline.save(tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [Segment(**line) for line in lines] == timeline.segments


def test_subtitles_are_what_players_read(timeline: Timeline, tmp_path: Path) -> None:
    timeline.save(tmp_path / "out.srt")
    text = (tmp_path / "out.srt").read_text()
    assert text.startswith(
        "1\n00:00:00,000 --> 00:30:00,500\nsurfing, on a wave (75%)\n\n2\n00:00:12,250 --> 01:00:00,000\n"
    )
    with av.open(str(tmp_path / "out.srt")) as container:
        packets = [packet for packet in container.demux() if packet.size]
    assert [(packet.pts, packet.duration) for packet in packets] == [
        (0, 1800500),
        (12250, 3587750),
        (3600000, 1800000),
    ]
    assert bytes(packets[2]).decode() == '"跳水" and more (60%)'


def test_names_that_tell_no_format_are_refused(timeline: Timeline, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"must end in .csv, .jsonl, .srt, .html, got .*out.txt"):
        timeline.save(tmp_path / "out.txt")


def test_clock() -> None:
    assert clock(3723.0456) == "01:02:03.046"
    assert clock(59.9996, ",") == "00:01:00,000"


@needs_browser
def test_the_page_shows_what_happens_when(timeline: Timeline, tmp_path: Path) -> None:
    timeline.save(tmp_path / "page.html")
    script = """
    const text = (id) => document.getElementById(id).innerText;
    const cells = (row) => [...row.cells].map((cell) => cell.textContent);
    const rows = (id) => [...document.querySelectorAll("#" + id + " tr")].map(cells);
    const seen = {title: text("title"), segments: rows("segments"), gaps: rows("gaps")};
    for (const id of ["labels", "entities"]) seen[id] = text(id);
    document.querySelectorAll("#segments tr")[2].click();
    seen.later = {labels: text("labels"), now: document.querySelector("tr.now").rowIndex, clock: text("clock"),
      picture: document.getElementById("picture").src === data.pictures[1].uri, entities: text("entities")};
    const time = document.getElementById("time");
    time.value = 2000;
    time.dispatchEvent(new Event("input"));
    seen.gap = text("labels");
    seen.lanes = document.getElementById("lanes").height > 0;
    seen.times = [4.1, 4.3, 59.96].map(clock);
    seen.failures = failures;
    document.body.textContent = JSON.stringify(seen);
    """
    seen = look(tmp_path / "page.html", script, tmp_path)
    assert seen["failures"] == []
    assert seen["title"] == "<b>holiday.mp4"
    assert seen["times"] == ["0:00:04.1", "0:00:04.3", "0:01:00.0"]
    assert seen["segments"][0] == ["0:00:00.0", "0:30:00.5", LABELS[0], "75.0 %", "90.0 %"]
    assert [row[2] for row in seen["segments"]] == LABELS[:3]
    assert seen["gaps"] == [["0:30:00.0", "1:00:00.0", "damaged <i>"]]
    assert "75.0 %" in seen["labels"]
    assert seen["entities"] == "Its frames aligned to wave, board."
    assert seen["later"] == {
        "labels": seen["later"]["labels"],
        "now": 3,
        "clock": "1:00:00.0",
        "picture": True,
        "entities": "",
    }
    assert "60.0 %" in seen["later"]["labels"]
    assert seen["gap"] == "Not told: damaged <i>"
    assert seen["lanes"]


def test_numbers_that_are_not_finite_are_null_on_a_page(tmp_path: Path) -> None:
    """JSON has none, and a browser reads nothing of a page that does."""
    page = fill_page("live.html", {"source": [math.nan, (-math.inf, {1: math.inf}), 0.5, "NaN"]})
    (tmp_path / "page.html").write_text(page)
    assert data_of(tmp_path / "page.html") == {"source": [None, [None, {"1": None}], 0.5, "NaN"]}
