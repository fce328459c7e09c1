"""The plot of a sweep holds every method, and what is no sweep is named."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.plots import main


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
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"timm:<any>, a CPU", "tome", "drop"} <= set(texts)


def test_a_file_without_settings_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "race.jsonl").write_text('{"case": "match"}\n')
    assert main([str(tmp_path / "race.jsonl"), "--out", str(tmp_path / "sweep.svg")]) == 2
    assert "race.jsonl has no settings of a sweep" in capsys.readouterr().err
