"""The training loop: schedule, groups, accumulation, and exact resume."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from alt_fast.checkpoint import CheckpointError, load_state
from alt_fast.fit import DivergedError, Schedule, Task, TerminatedError, fit, parameter_groups


@pytest.fixture
def writer(tmp_path: Path) -> SummaryWriter:
    return SummaryWriter(str(tmp_path / "tb"))


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
    return Task(
        name, module, groups, Schedule(12, 3), batches, loss, steps_per_epoch=4, accumulate=accumulate, **options
    )


def weights(task: Task) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in task.module.parameters()]


@pytest.mark.parametrize("stop_at", [0, 1, 3, 6, 11])
def test_resume_repeats_the_uninterrupted_run_bit_for_bit(tmp_path: Path, writer: SummaryWriter, stop_at: int) -> None:
    whole = make_task()
    fit(whole, tmp_path / "whole.state", writer, 100)
    interrupted = make_task(stop_at)
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, tmp_path / "part.state", writer, 2)
    resumed = make_task()
    fit(resumed, tmp_path / "part.state", writer, 2)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_a_finished_state_is_not_trained_further(tmp_path: Path, writer: SummaryWriter) -> None:
    task = make_task()
    fit(task, tmp_path / "a.state", writer, 5)
    expected = weights(task)
    again = make_task(stop_at=12)
    fit(again, tmp_path / "a.state", writer, 5)
    assert all(torch.equal(a, b) for a, b in zip(expected, weights(again), strict=True))
    assert load_state(tmp_path / "a.state")["step"] == 12


def test_accumulation_equals_the_large_batch(tmp_path: Path, writer: SummaryWriter) -> None:
    large, parts = make_task(), make_task(accumulate=4)
    gradients: dict[str, list[Tensor]] = {"large": [], "parts": []}
    for name, task in (("large", large), ("parts", parts)):
        seen = gradients[name]
        task.module[0].weight.register_post_accumulate_grad_hook(lambda p, seen=seen: seen.append(p.grad.clone()))
        fit(task, tmp_path / f"{name}.state", writer, 100)
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


def test_gradients_are_clipped(tmp_path: Path, writer: SummaryWriter) -> None:
    norms = []
    task = make_task(clip_grad=0.01)
    task.module[0].weight.register_post_accumulate_grad_hook(lambda p: norms.append(p.grad))
    fit(task, tmp_path / "a.state", writer, 100)
    assert all(gradient.norm() <= 0.0101 for gradient in norms)


def test_epochs_are_reported(tmp_path: Path, writer: SummaryWriter) -> None:
    epochs: list[int] = []
    fit(make_task(every_epoch=epochs.append), tmp_path / "a.state", writer, 100)
    assert epochs == [1, 2, 3]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, writer: SummaryWriter) -> None:
    task = make_task()
    with torch.no_grad():
        task.module[0].weight.fill_(float("inf"))
    with pytest.raises(DivergedError, match="toy: the loss is nan at step 0"):
        fit(task, tmp_path / "a.state", writer, 100)


def test_states_that_do_not_fit(tmp_path: Path, writer: SummaryWriter) -> None:
    path = tmp_path / "a.state"
    fit(make_task(), path, writer, 100)
    with pytest.raises(CheckpointError, match="is a state of 'toy', not of 'other'"):
        fit(make_task(name="other"), path, writer, 100)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"cannot read training state .*a\.state"):
        fit(make_task(), path, writer, 100)
    torch.save({"version": 99}, path)
    with pytest.raises(CheckpointError, match="version 99; this release reads version 1"):
        fit(make_task(), path, writer, 100)
    torch.save({"version": 1, "task": "toy", "module": {}, "step": 1}, path)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        fit(make_task(), path, writer, 100)


def test_sigterm_ends_after_the_step_with_its_state(tmp_path: Path, writer: SummaryWriter) -> None:
    whole = make_task()
    fit(whole, tmp_path / "whole.state", writer, 100)
    task = make_task()
    asked = replace(task, loss=lambda batch, number: (number == 5 and kill(), task.loss(batch, number))[1])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TerminatedError, match="toy: asked to end; 6 of 12 steps are in .*a.state"):
        fit(asked, tmp_path / "a.state", writer, 100)
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = make_task()
    fit(resumed, tmp_path / "a.state", writer, 100)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_steps_without_a_finite_loss_change_nothing(
    tmp_path: Path, writer: SummaryWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverging(*steps: int, **options: Any) -> Task:
        task = make_task(samples=lambda step: [f"video {step}"], **options)
        return replace(task, loss=lambda batch, n: task.loss(batch, n) * (float("nan") if n in steps else 1))

    with pytest.raises(DivergedError, match="the loss is nan at step 3, on video 3; try a lower"):
        fit(diverging(3), tmp_path / "a.state", writer, 100)
    task = diverging(3, 7, max_skipped=2)
    fit(task, tmp_path / "b.state", writer, 4)
    assert "the loss is nan at step 3, on video 3: skipped, 1 of at most 2" in capsys.readouterr().out
    assert all(weight.isfinite().all() for weight in weights(task))
    assert load_state(tmp_path / "b.state")["skipped"] == 2
    with pytest.raises(DivergedError, match="at step 7"):
        fit(diverging(3, 7, max_skipped=1), tmp_path / "c.state", writer, 5)
    resumed = diverging(7, max_skipped=1)  # the skipped step before the interruption counts
    with pytest.raises(DivergedError, match="at step 7"):
        fit(resumed, tmp_path / "c.state", writer, 5)


def test_a_full_disk_leaves_the_state_before(
    tmp_path: Path, writer: SummaryWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = torch.save
    full: list[bool] = []

    def save(content: Any, path: Path) -> None:
        if content["step"] == 6:
            full.append(True)
            path.write_bytes(b"part of it")
            raise OSError(28, "No space left on device")
        saved(content, path)

    monkeypatch.setattr("torch.save", save)
    with pytest.raises(CheckpointError, match="cannot write .*a.state: .*No space left on device"):
        fit(make_task(), tmp_path / "a.state", writer, 3)
    assert full
    assert load_state(tmp_path / "a.state")["step"] == 3
    assert not list(tmp_path.glob(".*.partial"))
