"""The command: tests, then times, for the example of every problem and for a file of one's own; faults exit with 1."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from problems import trial
from problems.run import main
from problems.trial import OPS, load_problem


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("op", OPS)
def test_the_example_of_every_problem_passes_and_is_timed(
    op: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.jsonl"
    assert main([op, "--device", "cpu", "--rounds", "2", "--seed", "5", "--results", str(out)]) == 0
    problem = load_problem(op)
    shown = capsys.readouterr().out
    assert "on cpu; --seed 5 repeats this" in shown
    assert shown.count(": passed\n") == len(problem.tests)
    tested, *raced = rows(out)
    assert tested["failures"] == {}
    assert [row["benchmark"] for row in raced] == problem.benchmarks["cpu"]
    for row in raced:
        assert {name: len(seconds) for name, seconds in row["seconds"].items()} == {"reference": 2, "alt_fast": 2}
        assert len(row["speedup"]["alt_fast"]["reference"]) == 3
        assert row["problem"] == op
        assert row["provenance"]["packages"]["torch"] == torch.__version__


def submission(folder: Path, body: str) -> str:
    """Write a file whose custom_kernel has this body."""
    path = folder / "mine.py"
    path.write_text(f"from problems.match.reference import ref_kernel\n\ndef custom_kernel(inputs):\n    {body}\n")
    return str(path)


def test_one_s_own_is_timed_beside_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, path = tmp_path / "results.jsonl", submission(tmp_path, "return ref_kernel(inputs)")
    arguments = ["match", "--submission", path, "--device", "cpu", "--rounds", "2", "--results", str(out)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert " over reference   x " in shown
    assert " over alt_fast\n" in shown
    *_, row = rows(out)
    assert list(row["seconds"]) == ["reference", "alt_fast", "submission"]
    assert list(row["speedup"]["submission"]) == ["reference", "alt_fast"]
    assert row["submission"] == "mine.py"
    assert row["sha256"] == hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_one_s_own_is_compared_with_the_example_where_the_reference_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(inputs: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    problem, out = load_problem("match"), tmp_path / "results.jsonl"
    monkeypatch.setattr(trial, "load_problem", lambda op: replace(problem, reference=too_large))
    path = submission(tmp_path, "return ref_kernel(inputs)")
    assert main(["match", "--submission", path, "--device", "cpu", "--rounds", "2", "--results", str(out)]) == 0
    assert " over alt_fast\n" in capsys.readouterr().out
    *_, row = rows(out)
    assert list(row["skipped"]) == ["reference"]
    assert {name: list(others) for name, others in row["speedup"].items()} == {
        "alt_fast": [],
        "submission": ["alt_fast"],
    }


def test_a_test_that_fails_is_named_and_nothing_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "key, *rest = inputs; return ref_kernel((key.roll(1, 1) if key.shape[1] == 577 else key, *rest))"
    out, path = tmp_path / "results.jsonl", submission(tmp_path, wrong)
    arguments = ["match", "--submission", path, "--device", "cpu", "--results", str(out)]
    assert main(arguments) == 1
    first = capsys.readouterr().out
    assert first.count(": passed\n") == 4
    (row,) = rows(out)
    ((shape, reason),) = row["failures"].items()
    assert shape.startswith("batch=1, num_tokens=577, ")
    assert reason.startswith("image 0: ")
    assert f"\ntest {shape}: failed: {reason}\n" in first
    assert main([*arguments, "--seed", str(row["seed"])]) == 1
    assert capsys.readouterr().out == first
    assert main(arguments) == 1
    assert capsys.readouterr().out != first


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("if len(inputs[0]) == 8: raise ValueError('no more than 7 images')", "ValueError: no more than 7 images"),
        ("if len(inputs[0]) == 8: return None", "submission, in a timed call: expected (slot, order, start)"),
    ],
)
def test_what_fails_when_timed_has_no_time(
    body: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, path = tmp_path / "results.jsonl", submission(tmp_path, f"{body}\n    return ref_kernel(inputs)")
    assert main(["match", "--submission", path, "--device", "cpu", "--rounds", "2", "--results", str(out)]) == 1
    assert f"    failed: {reason}" in capsys.readouterr().out
    tested, failed = rows(out)
    assert tested["failures"] == {}
    assert failed["failure"].startswith(reason)
    assert "seconds" not in failed


def test_what_cannot_be_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text, message in (
        ("absent.py", None, "no such file"),
        ("mine.txt", "", "its name must end in .py"),
        ("broken.py", "def custom_kernel(inputs:", "SyntaxError: '(' was never closed"),
        ("raises.py", "import nonsense", "ModuleNotFoundError: No module named 'nonsense'"),
        ("empty.py", "kernel = 1", "empty.py has no function custom_kernel(inputs)"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        assert main(["match", "--submission", str(tmp_path / name), "--device", "cpu"]) == 1
        error = capsys.readouterr().err
        assert str(tmp_path / name) in error
        assert message in error


def test_arguments_that_cannot_be_used_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, message in (
        (["softmax"], "invalid choice: 'softmax' (choose from"),
        (["match", "--rounds", "1"], "--rounds must be at least 2, got 1"),
        (["match", "--device", "cuda"], "device 'cuda' was asked for, but this PyTorch sees no GPU"),
    ):
        try:
            status = main(arguments)
        except SystemExit as e:  # of argparse
            status = int(str(e.code))
        assert status == 2
        assert message in capsys.readouterr().err
