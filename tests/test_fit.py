"""The training loop: schedule, groups, accumulation, and exact resume."""

import importlib
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from alt_fast.errors import CheckpointError
from alt_fast.training.loop import Checkpoints, DivergedError, Schedule, Task, TerminatedError, fit, parameter_groups
from alt_fast.training.run_log import RunLog
from alt_fast.training.states import load_state


def make_task(stop_at: int | None = None, accumulate: int = 1, name: str = "toy", **options: Any) -> Task:
    """Least squares on batches keyed by their number; raises at batch `stop_at`."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1))

    def batches(step: int) -> Any:
        for number in range(step * accumulate, 12 * accumulate):
            if number == stop_at:
                raise KeyboardInterrupt
            rows = 8 // accumulate
            whole = torch.randn(8, 4, generator=torch.Generator().manual_seed(number // accumulate))
            yield whole[number % accumulate * rows :][:rows]

    def loss(batch: Tensor, number: int) -> Tensor:
        return (module(batch)[:, 0] - batch.sum(1)).square().mean()

    groups = parameter_groups(module, lambda name: 0.02, 0.001)
    schedule = Schedule(12, 3)
    common = {"steps_per_epoch": 4, "batch_size": 8, "accumulate": accumulate}
    return Task(name, module, groups, schedule, batches, loss, **common, **options)


def last_state(folder: Path) -> dict[str, Any]:
    return load_state(sorted(folder.glob("*.state"))[-1])


def weights(task: Task) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in task.module.parameters()]


@pytest.mark.parametrize("stop_at", [0, 1, 3, 6, 11])
def test_resume_repeats_the_uninterrupted_run_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    whole = make_task()
    fit(whole, tmp_path / "whole", Checkpoints(100))
    interrupted = make_task(stop_at)
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, tmp_path / "part", Checkpoints(2))
    resumed = make_task()
    fit(resumed, tmp_path / "part", Checkpoints(2))
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_a_finished_state_is_not_trained_further(tmp_path: Path) -> None:
    task = make_task()
    fit(task, tmp_path / "a", Checkpoints(5))
    expected = weights(task)
    again = make_task(stop_at=12)
    fit(again, tmp_path / "a", Checkpoints(5))
    assert all(torch.equal(a, b) for a, b in zip(expected, weights(again), strict=True))
    assert last_state(tmp_path / "a")["step"] == 12


def test_accumulation_equals_the_large_batch(tmp_path: Path) -> None:
    large, parts = make_task(), make_task(accumulate=4)
    gradients: dict[str, list[Tensor]] = {"large": [], "parts": []}
    for name, task in (("large", large), ("parts", parts)):
        seen = gradients[name]
        task.module[0].weight.register_post_accumulate_grad_hook(lambda p, seen=seen: seen.append(p.grad.clone()))
        fit(task, tmp_path / name, Checkpoints(100))
    for a, b in zip(gradients["large"], gradients["parts"][3::4], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    for a, b in zip(weights(large), weights(parts), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_schedule_warms_up_and_follows_a_cosine() -> None:
    schedule = Schedule(steps=110, warmup=10, final=0.01)
    assert [schedule.factor(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert schedule.factor(10) == pytest.approx(1.0)
    assert schedule.factor(60) == pytest.approx(0.505)
    assert schedule.factor(110) == pytest.approx(0.01)
    assert Schedule(5, 0).factor(0) == 1.0


def test_parameters_of_one_dimension_do_not_decay() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    module[0].weight.requires_grad_(True)
    groups = parameter_groups(module, lambda name: 0.1 if name.startswith("0") else 0.5, 0.01)
    found = {(group["lr"], group["weight_decay"]): sorted(p.ndim for p in group["params"]) for group in groups}
    assert found == {(0.1, 0.01): [2], (0.1, 0.0): [1], (0.5, 0.0): [1, 1]}
    module.requires_grad_(False)
    assert parameter_groups(module, lambda name: 0.1, 0.01) == []


def test_gradients_are_clipped(tmp_path: Path) -> None:
    norms = []
    task = make_task(clip_grad=0.01)
    task.module[0].weight.register_post_accumulate_grad_hook(lambda p: norms.append(p.grad))
    fit(task, tmp_path / "a", Checkpoints(100))
    assert all(gradient.norm() <= 0.0101 for gradient in norms)


def test_epochs_are_reported(tmp_path: Path) -> None:
    epochs: list[int] = []
    fit(make_task(every_epoch=epochs.append), tmp_path / "a", Checkpoints(100))
    assert epochs == [1, 2, 3]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    task = make_task()
    with torch.no_grad():
        task.module[0].weight.fill_(float("inf"))
    with pytest.raises(DivergedError, match="toy: the loss is nan at step 0"):
        fit(task, tmp_path / "a", Checkpoints(100))


def test_states_that_do_not_fit(tmp_path: Path) -> None:
    fit(make_task(), tmp_path, Checkpoints(100))
    path = tmp_path / "toy-00000012.state"
    whole = path.read_bytes()
    path.write_bytes(whole[:500])
    with pytest.raises(CheckpointError, match=r"cannot read training state .*toy-00000012\.state"):
        fit(make_task(), tmp_path, Checkpoints(100))
    torch.save({"version": 99}, path)
    with pytest.raises(CheckpointError, match="version 99; this release reads version 1"):
        fit(make_task(), tmp_path, Checkpoints(100))
    torch.save({"version": 1, "module": {}, "step": 1}, path)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        fit(make_task(), tmp_path, Checkpoints(100))
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="was written without a mean of the weights"):
        fit(make_task(ema=0.9, tested=make_task().module), tmp_path, Checkpoints(100))


@pytest.mark.parametrize("sharded", [False, True])
def test_the_last_checkpoints_stay(sharded: bool, tmp_path: Path) -> None:
    """As many as asked for; what a killed process left half written goes."""
    (tmp_path / ".toy-00000006.state.partial").mkdir()
    (tmp_path / ".toy-00000004.state.partial").touch()
    (tmp_path / ".other-00000004.state.partial").touch()
    fit(make_task(sharded=sharded), tmp_path, Checkpoints(2, keep=3))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".other-00000004.state.partial",
        *(f"toy-{step:08}.state" for step in (8, 10, 12)),
    ]
    older = make_task(sharded=sharded, stop_at=11)
    last = tmp_path / "toy-00000012.state"
    shutil.rmtree(last) if sharded else last.unlink()
    with pytest.raises(KeyboardInterrupt):  # it goes on from step 10
        fit(older, tmp_path, Checkpoints(100))


def test_parts_resume_as_the_whole(tmp_path: Path) -> None:
    whole, interrupted, resumed = make_task(), make_task(6, sharded=True), make_task(sharded=True)
    for task in (interrupted, resumed):
        task.module[2].bias.requires_grad_(False)  # what does not train is not in the parts
        task.groups[1]["params"] = [task.module[0].bias]
    whole.module[2].bias.requires_grad_(False)
    whole.groups[1]["params"] = [whole.module[0].bias]
    fit(whole, tmp_path / "whole", Checkpoints(100))
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, tmp_path / "parts", Checkpoints(5))
    fit(resumed, tmp_path / "parts", Checkpoints(5))
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_parts_that_cannot_be_read(tmp_path: Path) -> None:
    fit(make_task(sharded=True), tmp_path, Checkpoints(100))
    for part in (tmp_path / "toy-00000012.state").glob("*.distcp"):
        part.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"cannot read training state .*toy-00000012\.state"):
        fit(make_task(sharded=True), tmp_path, Checkpoints(100))


@pytest.mark.parametrize("sharded", [False, True])
def test_the_mean_of_the_weights_is_what_is_tested(sharded: bool, tmp_path: Path) -> None:
    """Against the formula, through an interruption; the weights that train are those without a mean."""
    plain = make_task()
    expected, steps = [], [0]

    def average(optimizer: Any, *_: Any) -> None:
        now = weights(plain)
        decay = min(0.8, (1 + steps[0]) / (10 + steps[0]))
        expected[:] = [e * decay + w * (1 - decay) for e, w in zip(expected or start, now, strict=True)]
        steps[0] += 1

    start = weights(plain)
    handle = register_optimizer_step_post_hook(average)
    fit(plain, tmp_path / "plain", Checkpoints(100))
    handle.remove()
    with pytest.raises(KeyboardInterrupt):
        fit(make_task(7, ema=0.8, tested=make_task().module, sharded=sharded), tmp_path / "mean", Checkpoints(5))
    seen: list[Tensor] = []
    task = make_task(ema=0.8, tested=make_task().module, sharded=sharded)
    tested = task.tested
    assert tested is not None
    task = replace(task, every_epoch=lambda done: seen.append(next(tested.parameters()).detach().clone()))
    fit(task, tmp_path / "mean", Checkpoints(5))
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(task), strict=True))
    for parameter, mean in zip(tested.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), mean)
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])


def test_the_log_has_every_stretch_once(tmp_path: Path) -> None:
    """Also when the run goes on from before what was logged, after a line that was cut off."""
    with RunLog(tmp_path) as log, pytest.raises(KeyboardInterrupt):
        fit(make_task(11), tmp_path, Checkpoints(3), log)
    log.score("toy", 4, top1=0.5)
    log.score("other", 11, top1=0.25)
    with log.path.open("a") as file:
        file.write('{"stage": "toy", "st')
    with RunLog(tmp_path) as log:
        fit(make_task(), tmp_path, Checkpoints(3), log)
    entries = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(e["stage"], e["step"]) for e in entries] == [
        *(("toy", 4), ("toy", 8), ("toy", 4), ("other", 11), ("toy", 10), ("toy", 12)),
    ]
    measured = [entry for entry in entries if "loss" in entry]
    assert all(0 <= entry["wait_share"] <= 1 and entry["clips_per_s"] > 0 for entry in measured)
    assert all(entry["peak_bytes"] > 2**20 and entry["steps"] == 12 for entry in measured)
    assert measured[-1]["lr"] == pytest.approx(0.02 * Schedule(12, 3).factor(11))


def test_sigterm_ends_after_the_step_with_its_state(tmp_path: Path) -> None:
    whole = make_task()
    fit(whole, tmp_path / "whole", Checkpoints(100))
    task = make_task()
    asked = replace(task, loss=lambda batch, number: (number == 5 and kill(), task.loss(batch, number))[1])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TerminatedError, match=r"toy: asked to end; 6 of 12 steps are in .*toy-00000006\.state"):
        fit(asked, tmp_path / "a", Checkpoints(100))
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = make_task()
    fit(resumed, tmp_path / "a", Checkpoints(100))
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_steps_without_a_finite_loss_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def diverging(*steps: int, **options: Any) -> Task:
        task = make_task(samples=lambda step: [f"video {step}"], **options)
        return replace(task, loss=lambda batch, n: task.loss(batch, n) * (float("nan") if n in steps else 1))

    with pytest.raises(DivergedError, match="the loss is nan at step 3, on video 3; try a lower"):
        fit(diverging(3), tmp_path / "a", Checkpoints(100))
    task = diverging(3, 7, max_skipped=2)
    fit(task, tmp_path / "b", Checkpoints(4))
    assert "the loss is nan at step 3, on video 3: skipped, 1 of at most 2" in capsys.readouterr().out
    assert all(weight.isfinite().all() for weight in weights(task))
    assert last_state(tmp_path / "b")["skipped"] == 2
    with pytest.raises(DivergedError, match="at step 7"):
        fit(diverging(3, 7, max_skipped=1), tmp_path / "c", Checkpoints(5))
    resumed = diverging(7, max_skipped=1)  # the skipped step before the interruption counts
    with pytest.raises(DivergedError, match="at step 7"):
        fit(resumed, tmp_path / "c", Checkpoints(5))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_full_disk_leaves_the_state_before(sharded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "torch.distributed.checkpoint.filesystem._write_item" if sharded else "torch.save"
    module, attribute = name.rsplit(".", 1)
    write = getattr(importlib.import_module(module), attribute)
    full: list[bool] = []

    def fail(*arguments: Any, **options: Any) -> Any:
        if len(steps) == 6:
            full.append(True)
            raise OSError(28, "No space left on device")
        return write(*arguments, **options)

    plain = make_task(sharded=sharded)
    steps: list[int] = []
    monkeypatch.setattr(name, fail)
    task = replace(plain, loss=lambda batch, number: (steps.append(number), plain.loss(batch, number))[1])
    with pytest.raises(CheckpointError, match="cannot write .*toy-00000006.state: .*"):
        fit(task, tmp_path, Checkpoints(3))
    assert full
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["toy-00000003.state"]
    fit(make_task(sharded=sharded), tmp_path, Checkpoints(3))
