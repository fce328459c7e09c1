"""The training loop: schedule, groups, accumulation, and exact resume."""

import importlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from alt_fast.errors import CheckpointError, FileError
from alt_fast.training.loop import DivergedError, StageSettings, TerminatedError, fit
from alt_fast.training.run_log import RunLog
from alt_fast.training.schedule import Schedule, parameter_groups
from alt_fast.training.states import FORMAT_VERSION, SaveEvery, load_state


class Toy:
    """Least squares on batches keyed by their number; stops at batch `stop_at`.

    The loss is no number at batches `diverging`, and its gradient none at `exploding`.
    """

    def __init__(
        self,
        stop_at: int | None = None,
        accumulate: int = 1,
        tested: nn.Module | None = None,
        diverging: Sequence[int] = (),
        frozen: str | None = None,
        exploding: Sequence[int] = (),
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.name, self.tested, self.stop_at = "toy", tested, stop_at
        self.diverging, self.exploding = diverging, exploding
        self.module = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1))
        if frozen is not None:
            self.module.get_parameter(frozen).requires_grad_(False)
        self.settings = StageSettings(Schedule(12, 3), 4, 8, 0.001, accumulate, **options)
        self.epochs: list[int] = []
        self.seen: list[Tensor] = []
        self.before_loss: Callable[[int], object] = lambda number: None

    def learning_rate(self, parameter: str) -> float:
        return 0.02

    def batches(self, step: int) -> Iterator[Tensor]:
        accumulate = self.settings.accumulate
        for number in range(step * accumulate, 12 * accumulate):
            if number == self.stop_at:
                raise KeyboardInterrupt
            rows = 8 // accumulate
            whole = torch.randn(8, 4, generator=torch.Generator().manual_seed(number // accumulate))
            yield whole[number % accumulate * rows :][:rows]

    def loss(self, batch: Tensor, number: int) -> dict[str, Tensor]:
        self.before_loss(number)
        loss = (self.module(batch)[:, 0] - batch.sum(1)).square().mean()
        if number in self.exploding:
            loss = loss + (0 * self.module[0].weight.sum()).sqrt()
        return {"loss": loss * float("nan") if number in self.diverging else loss}

    def samples(self, step: int) -> list[str]:
        return [f"video {step}"]

    def synchronize(self, last: bool) -> None:
        pass

    def end_epoch(self, done: int) -> None:
        self.epochs.append(done)
        if self.tested is not None:
            self.seen.append(next(self.tested.parameters()).detach().clone())


def last_state(folder: Path) -> dict[str, Any]:
    return load_state(sorted(folder.glob("*.state"))[-1])


def weights(task: Toy) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in task.module.parameters()]


@pytest.mark.parametrize("stop_at", [0, 1, 3, 6, 11])
def test_resume_repeats_the_uninterrupted_run_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    whole = Toy()
    fit(whole, tmp_path / "whole", SaveEvery(100))
    interrupted = Toy(stop_at)
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, tmp_path / "part", SaveEvery(2))
    resumed = Toy()
    fit(resumed, tmp_path / "part", SaveEvery(2))
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_a_finished_state_is_not_trained_further(tmp_path: Path) -> None:
    task = Toy()
    fit(task, tmp_path / "a", SaveEvery(5))
    expected = weights(task)
    again = Toy(stop_at=12)
    fit(again, tmp_path / "a", SaveEvery(5))
    assert all(torch.equal(a, b) for a, b in zip(expected, weights(again), strict=True))
    assert last_state(tmp_path / "a")["step"] == 12


def test_accumulation_equals_the_large_batch(tmp_path: Path) -> None:
    large, parts = Toy(), Toy(accumulate=4)
    gradients: dict[str, list[Tensor]] = {"large": [], "parts": []}
    for name, task in (("large", large), ("parts", parts)):
        seen = gradients[name]
        task.module[0].weight.register_post_accumulate_grad_hook(lambda p, seen=seen: seen.append(p.grad.clone()))
        fit(task, tmp_path / name, SaveEvery(100))
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
    assert [Schedule(5, 0).progress(step) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert Schedule(1, 0).progress(0) == 0


def test_parameters_of_one_dimension_do_not_decay() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    module[0].weight.requires_grad_(True)
    groups = parameter_groups(module, lambda name: 0.1 if name.startswith("0") else 0.5, 0.01)
    found = {(group["lr"], group["weight_decay"]): sorted(p.ndim for p in group["params"]) for group in groups}
    assert found == {(0.1, 0.01): [2], (0.1, 0.0): [1], (0.5, 0.0): [1, 1]}
    module.requires_grad_(False)
    assert parameter_groups(module, lambda name: 0.1, 0.01) == []


def test_the_optimizer_is_the_paper_s(tmp_path: Path) -> None:
    """AdamW with betas of 0.9 and 0.98 (appendix B)."""
    seen: list[torch.optim.Optimizer] = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: seen.append(optimizer))
    try:
        fit(Toy(), tmp_path / "a", SaveEvery(100))
    finally:
        hook.remove()
    assert len(seen) == 12
    assert type(seen[0]) is torch.optim.AdamW
    assert all(group["betas"] == (0.9, 0.98) for group in seen[0].param_groups)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    norms = []
    task = Toy(clip_grad=0.01)
    task.module[0].weight.register_post_accumulate_grad_hook(lambda p: norms.append(p.grad))
    fit(task, tmp_path / "a", SaveEvery(100))
    assert all(gradient.norm() <= 0.0101 for gradient in norms)


def test_epochs_are_reported(tmp_path: Path) -> None:
    toy = Toy()
    fit(toy, tmp_path / "a", SaveEvery(100))
    assert toy.epochs == [1, 2, 3]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    task = Toy()
    with torch.no_grad():
        task.module[0].weight.fill_(float("inf"))
    with pytest.raises(DivergedError, match="toy: the loss is nan at step 0"):
        fit(task, tmp_path / "a", SaveEvery(100))


def test_states_that_do_not_fit(tmp_path: Path) -> None:
    fit(Toy(), tmp_path, SaveEvery(100))
    path = tmp_path / "toy-00000012.state"
    whole = path.read_bytes()
    path.write_bytes(whole[:500])
    with pytest.raises(CheckpointError, match=r"cannot read training state .*toy-00000012\.state"):
        fit(Toy(), tmp_path, SaveEvery(100))
    torch.save({"version": 99}, path)
    with pytest.raises(CheckpointError, match="version 99; this release reads version 2"):
        fit(Toy(), tmp_path, SaveEvery(100))
    torch.save({"version": 2, "module": {}, "step": 1}, path)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        fit(Toy(), tmp_path, SaveEvery(100))
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="was written without a moving average of the weights"):
        fit(Toy(ema=0.9, tested=Toy().module), tmp_path, SaveEvery(100))


@pytest.mark.parametrize("sharded", [False, True])
def test_the_last_checkpoints_stay(sharded: bool, tmp_path: Path) -> None:
    """As many as asked for; what a killed process left half written goes."""
    (tmp_path / ".toy-00000006.state.partial").mkdir()
    (tmp_path / ".toy-00000004.state.partial").touch()
    (tmp_path / ".other-00000004.state.partial").touch()
    fit(Toy(sharded=sharded), tmp_path, SaveEvery(2, keep=3))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".other-00000004.state.partial",
        *(f"toy-{step:08}.state" for step in (8, 10, 12)),
    ]
    older = Toy(sharded=sharded, stop_at=11)
    last = tmp_path / "toy-00000012.state"
    shutil.rmtree(last) if sharded else last.unlink()
    with pytest.raises(KeyboardInterrupt):  # it goes on from step 10
        fit(older, tmp_path, SaveEvery(100))


def test_parts_resume_as_the_whole(tmp_path: Path) -> None:
    """What does not train is not in the parts."""
    frozen = "2.bias"
    whole, interrupted = Toy(frozen=frozen), Toy(6, frozen=frozen, sharded=True)
    resumed = Toy(frozen=frozen, sharded=True)
    fit(whole, tmp_path / "whole", SaveEvery(100))
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, tmp_path / "parts", SaveEvery(5))
    fit(resumed, tmp_path / "parts", SaveEvery(5))
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_parts_that_cannot_be_read(tmp_path: Path) -> None:
    fit(Toy(sharded=True), tmp_path, SaveEvery(100))
    for part in (tmp_path / "toy-00000012.state").glob("*.distcp"):
        part.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"cannot read training state .*toy-00000012\.state: .+") as caught:
        fit(Toy(sharded=True), tmp_path, SaveEvery(100))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sharded", [False, True])
def test_the_mean_of_the_weights_is_what_is_tested(sharded: bool, tmp_path: Path) -> None:
    """Against the formula, through an interruption; the weights that train are those without a mean."""
    plain = Toy()
    expected: list[Tensor] = []
    steps = [0]

    def average(optimizer: Any, *_: Any) -> None:
        now = weights(plain)
        decay = min(0.8, (1 + steps[0]) / (10 + steps[0]))
        expected[:] = [e * decay + w * (1 - decay) for e, w in zip(expected or start, now, strict=True)]
        steps[0] += 1

    start = weights(plain)
    handle = register_optimizer_step_post_hook(average)
    fit(plain, tmp_path / "plain", SaveEvery(100))
    handle.remove()
    with pytest.raises(KeyboardInterrupt):
        fit(Toy(7, ema=0.8, tested=Toy().module, sharded=sharded), tmp_path / "mean", SaveEvery(5))
    tested = Toy().module
    task = Toy(ema=0.8, tested=tested, sharded=sharded)
    fit(task, tmp_path / "mean", SaveEvery(5))
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(task), strict=True))
    for parameter, mean in zip(tested.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), mean)
    assert len(task.seen) == 2
    assert not torch.equal(task.seen[0], task.seen[1])


def test_the_log_has_every_stretch_once(tmp_path: Path) -> None:
    """Also when the run goes on from before what was logged, after a line that was cut off."""
    with RunLog(tmp_path) as log, pytest.raises(KeyboardInterrupt):
        fit(Toy(11), tmp_path, SaveEvery(3), log)
    log.score("toy", 4, top1=0.5)
    log.score("other", 11, top1=0.25)
    with log.path.open("a") as file:
        file.write('{"stage": "toy", "st')
    with RunLog(tmp_path) as log:
        fit(Toy(), tmp_path, SaveEvery(3), log)
    entries = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(e["stage"], e["step"]) for e in entries] == [
        *(("toy", 3), ("toy", 4), ("toy", 6), ("toy", 8), ("toy", 9), ("toy", 4), ("other", 11)),
        *(("toy", 10), ("toy", 12)),
    ]
    measured = [entry for entry in entries if "loss" in entry]
    with RunLog(tmp_path / "whole") as log:
        fit(Toy(), tmp_path / "whole", SaveEvery(100), log)
    steps = [0, 4, 8, 10, 12]
    lines = map(json.loads, log.path.read_text().splitlines())
    whole = [line["loss"] * (line["step"] - before) for line, before in zip(lines, steps, strict=False)]
    steps = [0, *(entry["step"] for entry in measured)]
    told = sum(entry["loss"] * (entry["step"] - before) for entry, before in zip(measured, steps, strict=False))
    assert told == pytest.approx(sum(whole))
    assert all(0 <= entry["wait_share"] <= 1 and entry["clips_per_s"] > 0 for entry in measured)
    assert all(entry["peak_bytes"] > 2**20 and entry["steps"] == 12 for entry in measured)
    assert measured[-1]["lr"] == pytest.approx(0.02 * Schedule(12, 3).factor(11))


def test_a_skipped_step_is_in_no_mean_of_the_log(tmp_path: Path) -> None:
    """And NaN, which JSON does not have, in no line."""
    with RunLog(tmp_path) as log:
        fit(Toy(diverging=[3, 4, 5, 6, 7], max_skipped=5), tmp_path, SaveEvery(100), log)
    entries = [json.loads(line, parse_constant=pytest.fail) for line in log.path.read_text().splitlines()]
    found = {entry["step"]: entry["loss"] for entry in entries}
    assert found.keys() == {4, 8, 10, 12}
    assert found[8] is None
    assert all(loss > 0 for step, loss in found.items() if step != 8)


def test_the_rate_that_is_told_is_the_largest(tmp_path: Path) -> None:
    toy = Toy()
    toy.learning_rate = lambda parameter: 0.001 if parameter.startswith("0.") else 0.02  # type: ignore[method-assign]
    with RunLog(tmp_path) as log:
        fit(toy, tmp_path, SaveEvery(100), log)
    rates = [json.loads(line)["lr"] for line in log.path.read_text().splitlines()]
    assert rates == pytest.approx([0.02 * Schedule(12, 3).factor(step - 1) for step in (4, 8, 10, 12)])


def test_what_makes_batches_is_closed_by_any_error(tmp_path: Path) -> None:
    closed = []

    def batches(step: int) -> Iterator[Tensor]:
        try:
            yield from Toy().batches(step)
        finally:
            closed.append(step)

    toy = Toy()
    toy.batches = batches  # type: ignore[method-assign]
    toy.before_loss = lambda number: 1 // (number - 2)
    with pytest.raises(ZeroDivisionError):
        fit(toy, tmp_path, SaveEvery(100))
    assert closed == [0]


def test_a_state_of_something_else_is_named(tmp_path: Path) -> None:
    torch.save({"version": FORMAT_VERSION, "module": 1}, tmp_path / "toy-00000003.state")
    with pytest.raises(CheckpointError, match=r"toy-00000003\.state does not fit this run"):
        fit(Toy(), tmp_path, SaveEvery(100))


def test_lines_of_a_log_that_the_disk_has_lost_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine that goes down leaves NULs, of whole lines or of a part. What is no log is refused."""
    with RunLog(tmp_path) as log:
        log.score("toy", 4, top1=0.5)
        kept = log.path.read_bytes()
        log.path.write_bytes(b"\0" * 30 + b"\n" + kept + b'\0\0"toy", "step": 4}\n' + kept + b"\0" * 9)
        log.rewind("toy", 4)
        assert log.path.read_bytes() == kept + kept
        assert capsys.readouterr().out == f"{log.path}: 2 of 5 lines were lost, and are left out\n"
        for text in (kept + b"\xff\xfe\n", kept + b"top1\n"):
            log.path.write_bytes(text)
            with pytest.raises(FileError, match="is no log of a run"):
                log.rewind("toy", 4)
            assert log.path.read_bytes() == text


def test_sigterm_ends_after_the_step_with_its_state(tmp_path: Path) -> None:
    whole = Toy()
    fit(whole, tmp_path / "whole", SaveEvery(100))
    asked = Toy()
    asked.before_loss = lambda number: signal.raise_signal(signal.SIGTERM) if number == 5 else None
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TerminatedError, match=r"toy: asked to end; 6 of 12 steps are in .*toy-00000006\.state"):
        fit(asked, tmp_path / "a", SaveEvery(100))
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = Toy()
    fit(resumed, tmp_path / "a", SaveEvery(100))
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    last = Toy()
    last.before_loss = lambda number: signal.raise_signal(signal.SIGTERM) if number == 11 else None
    with pytest.raises(TerminatedError, match="12 of 12 steps"):  # before what follows the stage
        fit(last, tmp_path / "b", SaveEvery(100))
    ending = Toy()
    ending.end_epoch = lambda done: signal.raise_signal(signal.SIGTERM) if done == 3 else None  # type: ignore[method-assign]
    with pytest.raises(TerminatedError, match="12 of 12 steps"):
        fit(ending, tmp_path / "c", SaveEvery(100))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT is Python's own, as in the foreground of a terminal; what runs in the background may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_ends_after_the_step_with_its_state(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = Toy()
    fit(whole, tmp_path / "whole", SaveEvery(100))
    asked = Toy()
    asked.before_loss = lambda number: signal.raise_signal(signal.SIGINT) if number == 5 else None
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(asked, tmp_path / "a", SaveEvery(100))
    said = capfd.readouterr().err
    assert "Ctrl-C again ends at once" in said
    assert f"toy: asked to end; 6 of 12 steps are in {tmp_path / 'a' / 'toy-00000006.state'}" in said
    assert signal.getsignal(signal.SIGINT) == before
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["toy-00000006.state"]
    resumed = Toy()
    fit(resumed, tmp_path / "a", SaveEvery(100))
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_the_workers_end_is_heard(tmp_path: Path) -> None:
    class Closing(Toy):
        def batches(self, step: int) -> Iterator[Any]:
            try:
                yield from super().batches(step)
            finally:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(Closing(), tmp_path, SaveEvery(100))


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    def twice(number: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it went on")

    asked = Toy()
    asked.before_loss = twice
    with pytest.raises(KeyboardInterrupt):
        fit(asked, tmp_path, SaveEvery(100))
    assert not list(tmp_path.iterdir())


def test_interrupts_that_were_ignored_are_ignored(tmp_path: Path) -> None:
    asked = Toy()
    asked.before_loss = lambda number: signal.raise_signal(signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        fit(asked, tmp_path, SaveEvery(100))
    finally:
        signal.signal(signal.SIGINT, before)
    assert [path.name for path in tmp_path.iterdir()] == ["toy-00000012.state"]


def test_an_old_checkpoint_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alt_fast.training.loop.SAVE_SECONDS", -1.0)
    failing = Toy(exploding=[7])
    with pytest.raises(DivergedError):
        fit(failing, tmp_path, SaveEvery(100))
    assert [path.name for path in tmp_path.iterdir()] == ["toy-00000007.state"]


@pytest.mark.parametrize("clip_grad", [None, 1.0])
def test_steps_without_a_finite_gradient_change_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], clip_grad: float | None
) -> None:
    toy = Toy(exploding=[3, 7], max_skipped=2, clip_grad=clip_grad)
    fit(toy, tmp_path / "a", SaveEvery(4))
    assert ", its gradient nan at step 3, on video 3: skipped, 1 of at most 2" in capsys.readouterr().err
    assert all(weight.isfinite().all() for weight in weights(toy))
    with pytest.raises(DivergedError, match="its gradient nan at step 3"):
        fit(Toy(exploding=[3], clip_grad=clip_grad), tmp_path / "b", SaveEvery(100))


def test_steps_without_a_finite_loss_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DivergedError, match="the loss is nan at step 3, on video 3; try a lower"):
        fit(Toy(diverging=[3]), tmp_path / "a", SaveEvery(100))
    toy = Toy(diverging=[3, 7], max_skipped=2)
    fit(toy, tmp_path / "b", SaveEvery(4))
    assert "the loss is nan at step 3, on video 3: skipped, 1 of at most 2" in capsys.readouterr().err
    assert all(weight.isfinite().all() for weight in weights(toy))
    assert last_state(tmp_path / "b")["skipped"] == 2
    with pytest.raises(DivergedError, match="at step 7"):
        fit(Toy(diverging=[3, 7], max_skipped=1), tmp_path / "c", SaveEvery(5))
    resumed = Toy(diverging=[7], max_skipped=1)  # the skipped step before the interruption counts
    with pytest.raises(DivergedError, match="at step 7"):
        fit(resumed, tmp_path / "c", SaveEvery(5))


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

    toy = Toy(sharded=sharded)
    steps: list[int] = []
    toy.before_loss = steps.append
    monkeypatch.setattr(name, fail)
    with pytest.raises(FileError, match="cannot write .*toy-00000006.state: .*"):
        fit(toy, tmp_path, SaveEvery(3))
    assert full
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["toy-00000003.state"]
    fit(Toy(sharded=sharded), tmp_path, SaveEvery(3))
