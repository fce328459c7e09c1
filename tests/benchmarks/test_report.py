"""The report says what the result files hold and nothing else; the README's table is what the files say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import (
    alt_runs_table,
    alt_table,
    audit_table,
    main,
    methods_table,
    read_files,
    speed_runs_table,
    speed_table,
    update_tables,
)

ROOT = Path(__file__).parent.parent.parent
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


def write(path: Path, *rows: dict[str, Any], **facts: str) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in [{"provenance": HEAD | facts}, *rows]))
    return path


def page(tmp_path: Path, *rows: dict[str, Any]) -> str:
    assert main([str(write(tmp_path / "a.jsonl", *rows)), "--out", str(tmp_path / "out.html")]) == 0
    return (tmp_path / "out.html").read_text()


def test_methods_are_a_table_by_model_mode_and_batch() -> None:
    raced = {"mode": "inference", "batch": 8, "speedup": [1.1, 1.2, 1.3], "ceiling": [1.4] * 3, "share": [0.8] * 3}
    row = {
        "model": "timm:vit",
        "weights": None,
        "method": "tome",
        "r": 8,
        "flop_ratio": 1.25,
        "agreement": {"cosine": 0.99, "cosine_min": 0.9, "same_top1": 0.5},
        "faults": [{"name": "state"}],
        "races": [raced, {**raced, "speedup": None}],
    }
    _, _, case, line, untrained = methods_table([row, {**row, "weights": "random", "faults": []}]).splitlines()
    assert case == "| **timm:vit, inference, batch 8** | | | | | | | | | |"
    assert line == "| tome | 8 | 1.25 | 1.20 (1.10 to 1.30) | 1.40 | 80% | 0.9900 | 0.9000 | 50% | state |"
    assert untrained.endswith("| - | - | - | none |")  # agreement of random weights says nothing


def test_rows_that_have_their_own_provenance_keep_it(tmp_path: Path) -> None:
    rows = [{"method": name, "provenance": {"commit": name, "time": ""}} for name in ("a", "b")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, found = read_files([tmp_path / "rows.jsonl"])
    assert [(row["method"], row["measured"]["commit"]) for row in found] == [("a", "a"), ("b", "b")]


def test_what_has_no_measurement_is_called_not_measured(tmp_path: Path) -> None:
    text = page(tmp_path)
    sections = re.split("<h2>", text)[1:]
    assert [section.split("<")[0].split(":")[0] for section in sections] == [
        "Audit",
        "Ladder",
        "Quality",
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


@pytest.mark.parametrize(
    "readme", ["README.md", "benchmarks/README.md", "docs/audit.md", "docs/data.md", "docs/corpus.md"]
)
def test_the_readmes_hold_what_the_result_files_say(readme: str) -> None:
    rows = read_files(sorted((ROOT / "benchmarks/results").glob("*.jsonl")))[1]
    text = (ROOT / readme).read_text()
    assert update_tables(text, rows) == text


def test_the_page_takes_every_result_file(tmp_path: Path) -> None:
    """What `make report` gives it: other measurements than races have cases, too."""
    assert (
        main([*map(str, sorted((ROOT / "benchmarks/results").glob("*.jsonl"))), "--out", str(tmp_path / "page.html")])
        == 0
    )
    assert "alt_b16" in (tmp_path / "page.html").read_text()


def test_every_run_of_a_race_is_shown(tmp_path: Path) -> None:
    """The earliest first, whoever is ahead and however many rounds it has; in the README the last one."""
    contestants = ("un-merged (SDPA)", "published ToMe", "alt_fast")
    late = [race(name, flop_ratio=1.5, speedup=1.1) for name in contestants]
    early = [race(name, flop_ratio=1.5, speedup=1.4, rounds=9) for name in contestants]
    files = [write(tmp_path / "late.jsonl", *late), write(tmp_path / "early.jsonl", *early, time="2025-12-31")]
    rows = read_files(files)[1]
    rows.append(race("alt_fast", "an op") | {"measured": rows[0]["measured"]})
    first, second = speed_runs_table(rows).splitlines()[2:]
    for expected in ("encoder", "1.50", "1.40 (1.90 to 2.10)", "not measured", "| 9 |", "early.jsonl", "A <device>"):
        assert expected in first
    for expected in ("encoder", "1.10 (1.90 to 2.10)", "| 3 |", "late.jsonl"):
        assert expected in second
    assert speed_table(rows).splitlines()[2:] == [second.replace("(results/", "(benchmarks/results/")]


def test_of_several_counts_of_a_row_the_last_in_time_is_shown(tmp_path: Path) -> None:
    """Whatever the files are called, with the K that the paper's GFLOPs ask for."""
    row = {"audit": "Table 1", "row": "ALT", "gflops": 10.0, "parameters": 10**6}
    row |= {"paper": {"gflops": 11, "params": None}, "delta_percent": {"gflops": -9.1, "params": None}}
    new = [row | {"gflops": 10.5, "entities_asked_for": 6000}, row | {"row": "a new one"}]
    files = [write(tmp_path / "a.jsonl", *new), write(tmp_path / "b.jsonl", row, time="2025-12-31")]
    assert audit_table(read_files(files)[1]).splitlines()[2:] == [
        "| Table 1, ALT | 10.5 | 11 | -9.1 % | 6,000 | 1.0 |  |  |",
        "| Table 1, a new one | 10.0 | 11 | -9.1 % |  | 1.0 |  |  |",
    ]


def test_a_training_step_without_published_tome_is_shown(tmp_path: Path) -> None:
    case = "alt_b16, training step"
    pair = [race("plain", case), race("alt_fast", case, flop_ratio=1.3)]
    (line,) = alt_table(read_files([write(tmp_path / "a.jsonl", *pair)])[1]).splitlines()[2:]
    assert "| 1.30 | not measured | 2.00 (1.90 to 2.10) | not measured | 3 |" in line
    ours = race("alt_fast", case, flop_ratio=1.3, activation_bytes=2**20)
    pair = [race("plain", case, activation_bytes=3 * 2**20), ours]
    rows = read_files([write(tmp_path / "a.jsonl", *pair)])[1]
    (line,) = alt_table(rows).splitlines()[2:]
    assert "| 3, -, 1 MiB |" in line
    assert alt_runs_table(rows).replace("(results/", "(benchmarks/results/") == alt_table(rows)
    skipped = [pair[0], {"case": case, "contestant": "alt_fast", "skipped": "needs a GPU"}]
    assert len(alt_table(read_files([write(tmp_path / "a.jsonl", *skipped)])[1]).splitlines()) == 2


def test_a_text_without_marks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = update_tables("a <!-- quality -->old<!-- /quality --> b", [])
    assert text == "a <!-- quality -->\n| | r | merged | merged at random |\n|---|--:|--:|--:|\n<!-- /quality --> b"
    with pytest.raises(ValueError, match="no <!-- /speed -->"):
        update_tables("<!-- speed -->", [])
    (tmp_path / "README.md").write_text("no marks")
    with pytest.raises(SystemExit):
        main([str(write(tmp_path / "a.jsonl")), "--tables", str(tmp_path / "README.md")])
    assert "no <!-- audit -->" in capsys.readouterr().err


def test_a_broken_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "broken.jsonl"), "--out", str(tmp_path / "out.html")])
    assert "broken.jsonl is no result file" in capsys.readouterr().err
