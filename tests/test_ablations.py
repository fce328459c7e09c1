"""The sweep over the paper's tables: what each row trains, what is kept, and the printed table."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import pytest

from alt_fast.ablations import main
from alt_fast.errors import RunError
from alt_fast.model.config import ModelConfig
from alt_fast.paper.ablations import (
    SHAPES_FEW_SHOT,
    TABLES,
    Row,
    Sweep,
    call,
    ended_together,
    run_all,
    table_text,
)
from alt_fast.training.config import parse
from tests.conftest import SMALL_JOB
from tests.processes import start

CALL = "alt_fast.paper.ablations.call"


@pytest.mark.parametrize("row", [row for rows in TABLES.values() for row in rows], ids=lambda row: row.name)
def test_rows_are_models(row: Row) -> None:
    ModelConfig(**row.changes)
    assert set(row.changes) <= set(ModelConfig.__dataclass_fields__)
    assert row.paper[0] is not None


def run_forked(command: list[str], log: TextIO) -> int:
    """What `call` does with a command of Python, from a fork."""
    assert command[:2] == [sys.executable, "-m"]
    with start(*command[2:]) as process:
        status = process.wait()
        log.write(process.output + process.errors)
    return status


def test_a_table_on_motion_shapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows of Table C4: trained, few-shot trained from there, printed, and kept when asked for again."""
    rows = TABLES["C4"][2:]
    monkeypatch.setitem(TABLES, "C4", rows)
    monkeypatch.setattr(CALL, run_forked)
    short = ["--model.frames", "2", "--optim.epochs", "1", "--optim.warmup_epochs", "0"]
    monkeypatch.setattr("alt_fast.ablations.SHAPES_FEW_SHOT", " ".join([SHAPES_FEW_SHOT, *short]))
    command = ["C4", "--out", str(tmp_path), "--seeds", "0", "--"]
    shapes = SMALL_JOB[SMALL_JOB.index("--data.shapes.train_per_class") : SMALL_JOB.index("--model.frames")]
    options = [*shapes, *short, "--optim.batch_size", "12"]
    assert main([*command, *options]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    lines = printed.strip().splitlines()
    assert lines[0] == (
        "| Table C4 | paper, fully | paper, 2-shot | paper, 0-shot | ours, fully | ours, 2-shot | ours, 0-shot |"
    )
    assert len(lines) == 2 + len(rows)
    assert "not measured" not in printed
    folders = sorted(path.name for path in (tmp_path / "seed0").iterdir() if path.is_dir())
    assert folders == sorted(
        f"{name}{stage}" for name in ("base", "self_attention=false") for stage in ("", ",few-shot")
    )
    metrics = json.loads((tmp_path / "seed0" / "self_attention=false" / "metrics.json").read_text())
    assert f"{100 * metrics['top1']:.1f}" in lines[2]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.json")}
    assert main([*command[:-1], "--", *options]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.json")} == times
    assert capsys.readouterr().out == printed
    assert main([*command[:-1], "--", *options, "--optim.lr", "0.5"]) == 1
    assert re.search(r"base was trained with other settings: optim.lr was .*, now 0.5", capsys.readouterr().err)


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[list[list[str]], Sweep]:
    """A sweep whose trainings only leave metrics; returns their commands too."""
    commands: list[list[str]] = []

    def run(command: list[str], _: object) -> int:
        commands.append(command)
        folder = Path(next(o for o in command if o.startswith("--out=")).removeprefix("--out="))
        folder.mkdir(parents=True)
        seed = next(float(o.removeprefix("--seed=")) for o in command if o.startswith("--seed="))
        (folder / "metrics.json").write_text(json.dumps({"top1": 0.5 + seed / 10, "top1_zero_shot": 0.25}))
        return 0

    monkeypatch.setattr(CALL, run)
    return commands, Sweep(parse(options), options, None, ["torchrun"], tmp_path, 8)


def test_tables_of_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ALT-B/16 has the paper's r, no towers to share, and columns only for what was measured."""
    options = ["--config", "kinetics400_b16", "--data.train", "a.csv", "--data.test", "b.csv", "--corpus", "c.json"]
    commands, sweep = fake(tmp_path, monkeypatch, *options)
    run_all(sweep, ["8", "7"], [0, 1], jobs=2)
    assert len(commands) == 2 * 8
    assert all(command[:3] == ["torchrun", "-m", "alt_fast.train"] for command in commands)
    assert not any("data.root" in option or "clip.safetensors" in option for command in commands for option in command)
    text = table_text(sweep, "8", [0, 1])
    assert "| r = 13 | 81.9 | 55.0 ± 7.1 | 25.0 ± 0.0 |" in text
    assert "| r = 13 | 81.9 | 60.0 | 25.0 |" in table_text(sweep, "8", [1])
    assert "| r = 13 | 81.9 |" in table_text(sweep, "8", [2])  # nothing was trained with this seed


def test_few_shot_runs_start_from_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--config", "kinetics400_b16", "--data.train", "a.csv", "--data.test", "b.csv", "--corpus", "c.json"]
    commands, sweep = fake(tmp_path, monkeypatch, *options)
    few = ["--config", "few_shot_b16", "--data.train", "2-shot-seed{seed}.csv"]
    run_all(replace(sweep, few_shot=few), ["C4"], [3], jobs=1)
    second = [command for command in commands if "few_shot_b16" in command]
    assert len(second) == len(commands) / 2 == 4
    for command in second:
        start = next(o for o in command if o.startswith("--start-from=")).removeprefix("--start-from=")
        assert Path(start, "metrics.json").exists()
        assert "2-shot-seed3.csv" in command
        assert "--seed=3" in command
        changed = [o.removeprefix("--model.") for o in command if o.startswith("--model.")]
        assert changed.pop() == "frames=8"  # and not few_shot_b16's own 32
        assert Path(start).name == (",".join(changed) or "base")


def test_transfer_columns_are_of_runs_of_32_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Section 4.4: 8 frames fully supervised, 32 few- and zero-shot; nothing more is trained without these columns."""
    lists = ["--data.train", "a.csv", "--data.test", "b.csv"]
    data = ["--config", "kinetics400_b16", *lists, "--corpus", "c.json"]
    commands, _ = fake(tmp_path, monkeypatch)
    assert main(["C4", "--out", str(tmp_path / "8"), "--", *data]) == 0
    assert len(commands) == 4
    commands.clear()
    few = "--config few_shot_b16 --data.train 2-shot-seed{seed}.csv"
    command = ["C4", "--out", str(tmp_path / "32"), "--few-shot", few]
    assert main([*command, "--", *data, "--data.unseen", "testlist01.txt"]) == 0
    printed = capsys.readouterr().out
    assert "| both | 82.3 | 64.0 | 76.7 | 50.0 | 50.0 | 25.0 |" in printed
    assert len(commands) == 3 * 4
    names = {Path(option).name: command for command in commands for option in command if option.startswith("--out=")}
    assert {"base", "base,frames=32", "base,frames=32,few-shot"} < names.keys()
    assert not any("model.frames" in option for option in names["base"])
    assert "--model.frames=32" in names["base,frames=32"]
    assert f"--start-from={tmp_path / '32' / 'seed0' / 'base,frames=32'}" in names["base,frames=32,few-shot"]
    assert all("--model.frames=32" in command for name, command in names.items() if name.endswith("few-shot"))
    commands.clear()
    (tmp_path / "32" / "seed0" / "base,frames=32" / "metrics.json").write_text('{"top1": 0.9, "top1_zero_shot": 0.75}')
    assert main([*command, "--show", "--", *data, "--data.unseen", "testlist01.txt"]) == 0
    assert "| both | 82.3 | 64.0 | 76.7 | 50.0 | 50.0 | 75.0 |" in capsys.readouterr().out
    own = ["--out", str(tmp_path / "own"), "--few-shot", few, "--transfer-frames", "8"]
    assert main(["C4", *own, "--", *data]) == 0
    assert len(commands) == 2 * 4
    assert main(["C4", "--out", str(tmp_path), "--transfer-frames", "0", "--", *data]) == 2
    assert "--transfer-frames must be >= 1, got 0" in capsys.readouterr().err
    assert main(["7", "--out", str(tmp_path), "--transfer-frames", "16", "--", *data]) == 2
    assert "--transfer-frames has no effect without --few-shot or --data.unseen" in capsys.readouterr().err


def test_runs_of_other_frames_share_the_tower_of_a_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated data has unseen classes, so its runs are transferred, with or without few-shot training."""
    commands, sweep = fake(tmp_path, monkeypatch, "--config", "motion_shapes_clip")
    run_all(replace(sweep, frames=4), ["C4"], [0], jobs=1)
    first, again, *others = commands
    assert first[-2] == f"--out={tmp_path / 'seed0' / 'base'}"
    assert again[-2] == f"--out={tmp_path / 'seed0' / 'base,frames=4'}"
    assert not any("pretrain" in option for option in first)
    tower = {"--pretrain=null", f"--model.pretrained={tmp_path / 'seed0' / 'base' / 'clip.safetensors'}"}
    assert len(others) == 2 * 3
    assert all(tower <= set(command) for command in (again, *others))
    base = TABLES["C4"][-1]
    assert sweep.scores(base, 0) == {"fully": 50, "0-shot": 25}


def test_metrics_of_earlier_runs_are_read(tmp_path: Path) -> None:
    """Those without the score over all classes of the unseen list, before it had a name of its own."""
    folder = tmp_path / "seed0" / "base"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text('{"top1": 0.5, "top1_unseen_pairs": 0.25}')
    sweep = Sweep(parse([]), [], None, [], tmp_path, 8)
    assert sweep.scores(TABLES["C4"][-1], 0) == {"fully": 50, "0-shot": 25}


def test_rows_of_a_table_differ_whatever_the_configuration(tmp_path: Path) -> None:
    """The default job's tower is frozen, the paper's trained."""
    for options in ([], ["--config", "motion_shapes_clip"], ["--config", "kinetics400_b16"], ["--data.train", "clips"]):
        sweep = Sweep(parse(options), options, None, [], tmp_path, 8)
        for rows in TABLES.values():
            assert len({sweep.folder(row, 0) for row in rows}) == len(rows)


def test_rows_are_what_they_are_called_whatever_the_configuration(tmp_path: Path) -> None:
    """A job on clips of one's own, which lets frame tokens query, is no row that aligns."""
    options = ["--data.train", "clips", "--model.regions", "false", "--model.conv", "false"]
    sweep = Sweep(parse(options), options, None, [], tmp_path, 8)
    changes = {table: [sweep.changes(row) for row in rows] for table, rows in TABLES.items()}
    assert [change.get("query", "frame") for change in changes["5"]] == ["frame", *["entities"] * 3]
    assert changes["5"][-1]["regions"] is True
    assert {change["query"] for change in changes["8"] + changes["C3"][1:]} == {"entities"}
    assert ["conv" in change for change in changes["C4"]] == [False, False, True, True]
    unmerged = Sweep(parse([*options, "--model.r", "0"]), options, None, [], tmp_path, 8)
    for table, merging in (("5", TABLES["5"][2:]), ("8", TABLES["8"][1:])):
        assert unmerged.changes(TABLES[table][0]).get("r", 0) == 0
        for row in merging:
            with pytest.raises(RunError, match=r"a row merges tokens, and model\.r is 0"):
                unmerged.changes(row)


def test_options_that_every_run_has_its_own_of_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = ["--data.train", "clips"]
    for option, data in (
        ("--seed=3", []),
        ("--out", []),
        ("--frame-only", []),
        ("--data.shapes.seed", []),
        ("--data.root", []),
        ("--seed", listed),
    ):
        value = [] if "=" in option or option == "--frame-only" else ["3"]
        assert main(["8", "--out", str(tmp_path), "--", *data, option, *value]) == 2
        assert f"{option.partition('=')[0]} behind -- has no effect" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(["8", "--show", "--out", str(tmp_path), "--", *listed, "--data.root", "videos"]) == 0


def test_few_shot_runs_on_motion_shapes_are_of_the_kind_they_start_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--config", "motion_shapes_clip", "--model.shortcut", "true", "--model.r", "6", "--templates", "name"]
    options += ["--augment.normalize", "clip"]
    commands, sweep = fake(tmp_path, monkeypatch, *options)
    monkeypatch.setattr("alt_fast.paper.ablations.write_shots", lambda *_, **__: None)
    run_all(replace(sweep, few_shot=SHAPES_FEW_SHOT.split()), ["C4"], [0], jobs=1)
    jobs = [parse(command[3:]) for command in commands if "few_shot_motion_shapes" in command]
    assert len(jobs) == len(TABLES["C4"])
    assert {(job.templates, job.augment.normalize) for job in jobs} == {("name", "clip")}
    models = [job.model for job in jobs]
    assert {(model.pool, model.shortcut, model.tuning, model.r, model.tau) for model in models} == {
        ("mean", True, "finetune", 6, 0.1)
    }


def test_r_is_scaled_to_the_model(tmp_path: Path) -> None:
    sweep = Sweep(parse([]), [], None, [], tmp_path, 8)
    assert [sweep.changes(row).get("r") for row in TABLES["8"]] == [0, 2, None, 6]
    text = table_text(sweep, "8", [0])
    assert "| r = 13 (here 6) | 81.9 |" in text
    assert "| r = 8 (here 4) | 82.4 |" in text
    listed = Sweep(parse(["--model.r", "[4, 4, 4, 4]"]), [], None, [], tmp_path, 8)
    assert "r" not in listed.changes(TABLES["8"][2])  # its own
    with pytest.raises(RunError, match="must be an int"):
        listed.changes(TABLES["8"][1])


def test_all_is_every_category_whatever_the_configuration_aligns_to(tmp_path: Path) -> None:
    """The default job leaves motions out; where the configuration has all of them the row is the unchanged model."""
    row = TABLES["C3"][-1]
    assert row.name == "all"
    shapes, kinetics = (Sweep(parse(own), own, None, [], tmp_path, 8) for own in ([], ["--config", "kinetics400_b16"]))
    assert shapes.changes(row) == {"categories": None}
    assert shapes.folder(row, 0).name == "categories=null"
    assert parse(["--model.categories=null"]).model.categories is None
    assert kinetics.folder(row, 0).name == "base"


def test_nothing_is_trained_after_a_row_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the thread that is free at that moment, too."""
    commands, sweep = fake(tmp_path, monkeypatch, "--config", "kinetics400_b16", "--data.train", "a.csv")

    def fail(command: list[str], _: object) -> int:
        commands.append(command)
        return 3

    monkeypatch.setattr(CALL, fail)
    with pytest.raises(RunError, match="status 3 of"):
        run_all(sweep, ["8"], [0, 1, 2, 3], jobs=1)
    assert len(commands) == 1


def test_sigterm_ends_the_training_too(tmp_path: Path) -> None:
    """Which would go on, and keep its folder from the same command."""
    slow = tmp_path / "slow.sh"
    slow.write_text(f"echo $$ > {tmp_path}/pid\nexec sleep 100\n")
    command = [sys.executable, "-m", "alt_fast", "ablations", "8", "--out", str(tmp_path / "out")]
    with subprocess.Popen([*command, "--launch", f"sh {slow}"], stderr=subprocess.DEVNULL) as process:
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n")):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_sigterm_ends_a_training_that_has_just_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the thread that started it had the time to say so; and no other one begins."""
    begun: list[subprocess.Popen[bytes]] = []
    plain = subprocess.Popen

    def slow(*args: Any, **options: Any) -> "subprocess.Popen[bytes]":
        begun.append(plain(*args, **options))
        time.sleep(0.3)
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", slow)
    with (tmp_path / "log").open("w") as log, ThreadPoolExecutor(1) as pool:

        @ended_together()
        def begin() -> None:
            trainings.extend(pool.submit(call, ["sleep", "20"], log) for _ in range(2))
            while not begun:
                time.sleep(0.01)
            signal.raise_signal(signal.SIGTERM)

        trainings: list[Future[int]] = []
        with pytest.raises(SystemExit):
            begin()
        assert trainings[0].result(10) == -signal.SIGTERM
        with pytest.raises(RunError, match="asked to end before sleep 20"):
            trainings[1].result(10)
    assert len(begun) == 1


def test_a_row_that_fails_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["8", "--out", str(tmp_path), "--", "--data.generate", "null", "--data.train", "none.csv"]) == 1
    error = capsys.readouterr().err
    assert "status 1 of" in error
    assert "base.log" in error
    assert "cannot read none.csv" in (tmp_path / "seed0" / "base.log").read_text()
