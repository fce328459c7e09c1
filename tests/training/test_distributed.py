"""Several processes under torchrun do what one does; when one dies, the job goes on from its last checkpoint."""

import gc
import json
import os
import shutil
import signal
import socket
import weakref
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch import nn

from alt_fast.distributed import World, join_world
from alt_fast.extract import main as extract
from alt_fast.train import main
from tests.browser import data_of
from tests.conftest import SMALL_JOB, once
from tests.processes import Command, children, start, start_torchrun, start_torchrun_anew

JOB = [
    *SMALL_JOB,
    *("--frame_only", "false", "--optim.mixup", "0.8", "--optim.cutmix", "1.0", "--data.workers", "0"),
    *("--pretrain.steps", "1", "--model.depth", "1", "--optim.epochs", "3", "--device", "cpu"),
    *("--optim.distill", "0.5"),
]
"""Nine steps."""


def finish(process: Command) -> str:
    """Wait for the end, which must be a good one; returns what was printed."""
    with process:
        assert process.wait(300) == 0, process.errors
        return process.output


def losses(run: Path, name: str = "loss") -> list[float]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [event.value for event in events.Scalars(f"alt/{name}")]


def near(value: Any) -> Any:
    """What equals the value up to fp32's rounding, which depends on how many videos are computed at once."""
    if isinstance(value, dict):
        return {name: near(part) for name, part in value.items()}
    if isinstance(value, list):
        return [near(part) for part in value]
    return pytest.approx(value, rel=1e-6) if isinstance(value, float) else value


@pytest.fixture(scope="module")
def data(trained_run: Path) -> list[str]:
    return ["--data.root", str(trained_run.parent / "data")]


@pytest.fixture(scope="module")
def two(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of JOB with two processes, from torchrun's own command line; all others are forks."""

    def train(folder: Path) -> None:
        printed = finish(start_torchrun_anew("alt_fast.train", *JOB, *data, "--out", str(folder / "run")))
        assert "2 processes on cpu, 12 clips a step in all (2 x 1 x 6: processes, accumulated, at once)" in printed
        assert "learning rates 0.001, image tower 0.0001" in printed
        assert printed.count("run folder") == 1

    return once(tmp_path_factory, "two", train) / "run"


def test_two_processes_train_as_one(two: Path, data: list[str], tmp_path: Path) -> None:
    assert main([*JOB, *data, "--out", str(tmp_path / "one"), "--optim.accumulate", "2"]) == 0
    one, both = losses(tmp_path / "one"), losses(two)
    assert len(one) == 9
    assert both == pytest.approx(one, rel=1e-4)
    one, both = losses(tmp_path / "one", "distill"), losses(two, "distill")
    assert one[-1] > 1e-4
    assert both == pytest.approx(one, rel=1e-3, abs=1e-6)
    scores = [json.loads((run / "metrics.json").read_text()) for run in (tmp_path / "one", two)]
    assert scores[0]["test_videos"] == scores[1]["test_videos"] == 36


def test_two_processes_test_as_one(two: Path, data: list[str], tmp_path: Path) -> None:
    """On a number of videos that does not divide, one of which is not there; then on fewer videos than processes."""
    folder = Path(data[1])
    lines = (folder / "test.txt").read_text().splitlines()
    for number in (7, 1):
        listed = [*lines[: number - 1], "none.webm 1"]
        (tmp_path / "list.txt").write_text("".join(f"{line}\n" for line in listed))
        arguments = ["--checkpoint", str(two), "--list", str(tmp_path / "list.txt"), "--root", str(folder), "--json"]
        arguments += ["--workers", "0", "--device", "cpu", "--crops", "2"]
        arguments += ["--also-r", "0", "--explain", "5", "--report"]
        reports = [tmp_path / f"{processes} of {number}" / "out.html" for processes in (1, 2)]
        rows = []
        for launch, report in zip((start, start_torchrun), reports, strict=True):
            with launch("alt_fast.evaluate", *arguments, str(report)) as process:
                assert process.wait() == 1, (number, process.errors)  # one video is not there
                rows.append(json.loads(process.output))
        (expected,), (row,) = rows
        assert row == expected
        assert row["videos"] == number
        assert [Path(entry["path"]).name for entry in row["unreadable"]] == ["none.webm"]
        shown = [data_of(report)["lists"][0] for report in reports]
        for row in (row for data in shown for row in data["ladder"]):
            assert row.pop("ms") > 0
        assert shown[1] == near(shown[0])
        (own,) = (row for row in shown[1]["ladder"] if row["own"])
        pages = shown[1]["pages"]
        assert pages.keys() == {mistake["path"] for mistake in own["mistakes"][:5]}
        assert all((reports[1].parent / page).exists() for page in pages.values())


def test_two_processes_extract_as_one(two: Path, data: list[str], tmp_path: Path) -> None:
    """They share the files that are missing, one of five at first."""
    listed = (Path(data[1]) / "test.txt").read_text().splitlines()[:9]
    (tmp_path / "list.txt").write_text("".join(f"{line}\n" for line in [*listed, "none.webm 1"]))
    command = ["--checkpoint", str(two), "--list", str(tmp_path / "list.txt"), "--root", data[1], "--workers", "0"]
    command += ["--device", "cpu", "--per-file", "2", "--out"]
    assert extract([*command, str(tmp_path / "one")]) == 1
    assert extract([*command, str(tmp_path / "both")]) == 1
    for number in (0, 2, 3, 4):
        (tmp_path / "both" / f"0000{number}.safetensors").unlink()
    with start_torchrun("alt_fast.extract", *command, str(tmp_path / "both")) as process:
        assert process.wait() == 1
        assert process.output == f"10 videos in {tmp_path / 'both'}\n", process.errors
        assert process.errors.count("unreadable, zeros") == 1
    for number in range(5):
        one, both = (load_file(tmp_path / name / f"0000{number}.safetensors") for name in ("one", "both"))
        assert torch.equal(one["label"], both["label"])
        torch.testing.assert_close(one["video"], both["video"])


def ranks(process: Command, run: Path) -> dict[str, int]:
    """Process ids of torchrun's two processes; the first is the one that writes the run folder."""
    main = int((run / ".lock").read_text().split()[1])
    (other,) = set(children(process.pid)) - {main}
    assert main in children(process.pid)
    return {"0": main, "1": other}


@pytest.mark.parametrize(("rank", "whole"), [("0", "two"), ("1", "two"), ("1", "sharded")])
def test_a_killed_process_costs_the_steps_since_the_last_checkpoint(
    rank: str, whole: str, data: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run, undisturbed = tmp_path / "run", request.getfixturevalue(whole)
    options = SHARDED if whole == "sharded" else []
    with start_torchrun("alt_fast.train", *JOB, *data, *options, "--out", str(run), restarts=1) as process:
        process.wait_until(lambda: list(run.glob("alt-*.state")))
        os.kill(ranks(process, run)[rank], signal.SIGKILL)
        assert process.wait() == 0, process.errors
    expected, found = load_file(undisturbed / "model.safetensors"), load_file(run / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_sigterm_writes_a_checkpoint_to_go_on_from(two: Path, data: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*JOB, *data, "--out", str(run), "--checkpoint_every", "100"]
    with start_torchrun("alt_fast.train", *arguments) as process:
        process.wait_until(lambda: "alt: step 3 of 9" in process.output)
        process.kill(signal.SIGTERM)
        assert process.wait() != 0
        assert "asked to end" in process.errors, process.errors
    assert list(run.glob("alt-*.state"))
    finish(start_torchrun("alt_fast.train", *arguments, "--resume"))
    expected, found = load_file(two / "model.safetensors"), load_file(run / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.fixture(scope="module")
def sharded(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of JOB with weights, optimizer and checkpoints in two parts, and with a mean of the weights."""

    def train(folder: Path) -> None:
        options = [*SHARDED, "--keep", "9", "--out", str(folder / "run")]
        finish(start_torchrun("alt_fast.train", *JOB, *data, *options))

    return once(tmp_path_factory, "sharded", train) / "run"


SHARDED = ["--optim.sharded", "true", "--optim.ema", "0.9", "--checkpoint_every", "6"]


def test_parts_train_as_the_whole(sharded: Path, two: Path, data: list[str], tmp_path: Path) -> None:
    assert losses(sharded) == pytest.approx(losses(two), rel=1e-4)
    whole = tmp_path / "whole"
    finish(start_torchrun("alt_fast.train", *JOB, *data, "--optim.ema", "0.9", "--out", str(whole)))
    expected, found = load_file(whole / "model.safetensors"), load_file(sharded / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4)
    unaveraged = load_file(two / "model.safetensors")
    assert not torch.equal(unaveraged["decoder.norm.weight"], found["decoder.norm.weight"])
    checkpoint = next(sharded.glob("alt-*.state"))
    assert checkpoint.is_dir()
    assert len(list(checkpoint.glob("*.distcp"))) == 2


@pytest.mark.parametrize("first", [1, 2])
def test_parts_go_on_with_another_number_of_processes(
    first: int, sharded: Path, data: list[str], tmp_path: Path
) -> None:
    """As many parts of a batch in all, so that the rest of the run is the same."""
    run = tmp_path / "run"
    arguments = ["alt_fast.train", *JOB, *data, *SHARDED, "--out", str(run), "--resume"]
    counts = {1: ["--optim.accumulate", "2"], 2: ["--optim.accumulate", "1"]}
    if first == 2:
        shutil.copytree(sharded, run)  # what two processes leave is there
    else:
        finish(start_torchrun(*arguments, *counts[first], "--keep", "9", processes=first))
    shutil.rmtree(run / "alt-00000009.state")
    for name in ("model.safetensors", "metrics.json"):
        (run / name).unlink()
    finish(start_torchrun(*arguments, *counts[3 - first], processes=3 - first))
    assert losses(run)[-3:] == pytest.approx(losses(sharded)[-3:], rel=1e-4)
    assert len(losses(run)) == 9 + 3
    expected, found = load_file(sharded / "model.safetensors"), load_file(run / "model.safetensors")
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4)


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")  # as clusters set it, without torchrun
    with join_world("cpu") as world:
        assert world == World(0, 1, 0)
        assert world.main
        assert world.gather("a") == ["a"]
        assert world.mean(1.0, 2.0) == [1.0, 2.0]


@pytest.fixture
def alone() -> dict[str, str]:
    """The environment of the only process of a job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    return job | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def test_processes_wait_for_each_other_for_days(alone: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own limits are minutes, and shares of the work are as long as the videos in them."""
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    with join_world("cpu"):
        group = torch.distributed.group.WORLD
        assert group is not None
        assert group._get_backend(torch.device("cpu")).options._timeout >= timedelta(days=3)


def test_a_group_outlives_what_trained_in_it(alone: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With an exception, a DistributedDataParallel leaves `join_world`. If its group went with it, one time in thirty
    or so it would wait for ever."""
    import torch.distributed.nn  # whose functions keep the group that is the default when it is imported

    for name, value in (alone | {"MASTER_PORT": "0"}).items():
        monkeypatch.setenv(name, value)
    with join_world("cpu"):
        group = weakref.ref(torch.distributed.group.WORLD)
        model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    del model
    gc.collect()
    assert group() is not None


def test_batches_that_cannot_be_shared(data: list[str], tmp_path: Path) -> None:
    arguments = [*JOB, *data, "--out", str(tmp_path / "run"), "--optim.batch_size", "6", "--pretrain.steps", "1"]
    with start_torchrun("alt_fast.train", *arguments) as process:
        assert process.wait() != 0
        expected = "optim.batch_size 6 must be made of 2 equal parts (2 processes x optim.accumulate 1), each even"
        assert expected in process.errors
