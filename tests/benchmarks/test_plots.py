"""The plot of a sweep holds every method, that of a tower's way every seed; a file with neither is named."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks.plots import SHARES, draw_interpolation, main, whole_ways

SVG = "{http://www.w3.org/2000/svg}"


def test_a_sweep_is_drawn(tmp_path: Path) -> None:
    rows = [
        {
            "model": "timm:<any>",
            "method": method,
            "speedup": [speed - 0.1, speed, speed + 0.2],
            "agreement": {"cosine": cosine},
            "provenance": {"device": "a CPU"},
        }
        for method, speed, cosine in (("tome", 1.1, 0.99), ("tome", 1.2, 0.98), ("drop", 1.15, 0.9))
    ]
    (tmp_path / "sweep.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert main([str(tmp_path / "sweep.jsonl"), "--out", str(tmp_path / "sweep.svg")]) == 0
    root = ElementTree.parse(tmp_path / "sweep.svg").getroot()
    assert root.tag == f"{SVG}svg"
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"timm:<any>, a CPU", "tome", "drop"} <= set(texts)


def test_the_way_from_clips_tower_is_drawn(tmp_path: Path) -> None:
    """Of the first options' rows, and of seeds that have all of them: a line each, and their mean with its points."""
    rows = [
        {"level": 2, "seed": seed, "way": way, "options": options, "test": 0.9 + seed / 100, "unseen": number / 10}
        for options in ([], ["--other"])
        for seed in range(3)
        for number, way in enumerate((*SHARES, "clip"))
        if (seed, way) != (2, "share-50")  # it was stopped there
    ]
    path = tmp_path / "zero_shot.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    drawn = whole_ways(rows)
    assert [(row["seed"], row["way"]) for row in drawn] == [(seed, way) for seed in (0, 1) for way in SHARES]
    assert not any(row["options"] for row in drawn)
    axes = Figure().subplots()
    draw_interpolation(drawn)(axes)
    *seeds, mean = [np.asarray(line.get_xydata()).T.tolist() for line in axes.lines]
    assert [line[0] for line in seeds] == [4 * [90.0], 4 * [91.0]]
    assert mean == [pytest.approx(4 * [90.5]), pytest.approx([0.0, 10.0, 20.0, 30.0])]
    assert main([str(path), "--out", str(tmp_path / "way.svg")]) == 0
    texts = [element.text for element in ElementTree.parse(tmp_path / "way.svg").getroot().iter(f"{SVG}text")]
    assert {*SHARES.values(), "level 2, mean of 2 seeds"} <= set(texts)


def test_a_file_without_settings_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "race.jsonl").write_text('{"case": "match"}\n')
    assert main([str(tmp_path / "race.jsonl"), "--out", str(tmp_path / "sweep.svg")]) == 2
    assert "race.jsonl has neither settings of a sweep" in capsys.readouterr().err
