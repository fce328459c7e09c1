"""The report says what the result files hold and nothing else; the README's table is what the files say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import MARKS, main, read_files, readme_table, update_readme

ROOT = Path(__file__).parent.parent
HEAD = {
    "device": "A <device>",
    "time": "2026-01-01",
    "commit": "abc",
    "uncommitted_changes": False,
    "packages": {"torch": "2"},
}


def race(contestant: str, case: str = "encoder", **facts: Any) -> dict[str, Any]:
    row = {"case": case, "contestant": contestant, "seconds": 0.5, "quartiles": [0.4, 0.6], "rounds": 3}
    return row | {"peak_bytes": None, "baseline": "plain", "speedup": 2.0, "speedup_quartiles": [1.9, 2.1]} | facts


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in [{"provenance": HEAD}, *rows]))
    return path


def page(tmp_path: Path, *rows: dict[str, Any]) -> str:
    assert main([str(write(tmp_path / "a.jsonl", *rows)), "--out", str(tmp_path / "out.html")]) == 0
    return (tmp_path / "out.html").read_text()


def test_what_has_no_measurement_is_called_not_measured(tmp_path: Path) -> None:
    text = page(tmp_path)
    sections = re.split("<h2>", text)[1:]
    assert [section.split("<")[0].split(":")[0] for section in sections] == [
        "Audit",
        "Ladder",
        "Roofline",
        "Break-even",
        "Races",
    ]
    assert all("not measured" in section for section in sections)
    assert "GPU: not measured" in text


def test_the_page_holds_the_figures_and_needs_no_network(tmp_path: Path) -> None:
    text = page(
        tmp_path,
        race("ours <b>"),
        {"case": "encoder", "contestant": "absent", "skipped": "needs a GPU"},
        race("2 SDPA", "ladder, r = 8", cosine_to_first=0.9876),
        race("copy", "ceilings, float32", bytes=10**9),
        race("matmul", "ceilings, float32", macs=10**9),
        race("attention", "attention: 8 images", bytes=10**6, macs=10**7),
    )
    for expected in ("500.000", "1.900 to 2.100", "not measured: needs a GPU", "0.9876", "A &lt;device&gt;"):
        assert expected in text
    assert "ours &lt;b&gt;" in text
    assert "vit_base_patch16, r = 8" in text
    assert text.count("<svg") == 1
    assert not re.search(r'(src|href)="(?!#)', text.replace('xlink:href="#', ""))


def test_the_readme_holds_what_the_result_file_says() -> None:
    rows = read_files([ROOT / "benchmarks/results/audit.jsonl"])[1]
    readme = (ROOT / "README.md").read_text()
    assert update_readme(readme, readme_table(rows)) == readme


def test_a_readme_without_marks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert update_readme(f"a {MARKS[0]}old{MARKS[1]} b", "new") == f"a {MARKS[0]}\nnew\n{MARKS[1]} b"
    (tmp_path / "README.md").write_text("no marks")
    with pytest.raises(SystemExit):
        main([str(write(tmp_path / "a.jsonl")), "--readme", str(tmp_path / "README.md")])
    assert "no <!-- audit -->" in capsys.readouterr().err


def test_a_broken_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "broken.jsonl"), "--out", str(tmp_path / "out.html")])
    assert "broken.jsonl is no result file" in capsys.readouterr().err
