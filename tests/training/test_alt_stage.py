"""ALT's stage on clips out of nowhere: distillation of the image tower that training starts from."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alt_fast.corpus import Corpus
from alt_fast.data.annotations import Video
from alt_fast.data.batch import Batch
from alt_fast.data.config import AugmentConfig
from alt_fast.data.dataset import TrainClips
from alt_fast.data.loader import open_backend
from alt_fast.data.rng import Stream, integer
from alt_fast.distributed import World
from alt_fast.errors import ArgumentError
from alt_fast.inference.trained import TrainedModel
from alt_fast.model.alt import create_model
from alt_fast.model.config import ModelConfig
from alt_fast.training.alt_stage import AltStage, class_tokens, distillation_loss
from alt_fast.training.config import OptimConfig, TrainConfig
from alt_fast.training.job import Job, Lists
from alt_fast.training.loop import fit
from alt_fast.training.run_log import RunLog
from alt_fast.training.states import SaveEvery

STEPS = 4


class Stage(AltStage):
    """Batches of noise by their number; stops before step `stop_at`."""

    stop_at: int | None = None

    def batches(self, step: int) -> Iterator[Batch]:  # type: ignore[override]
        for number in range(step, STEPS):
            if number == self.stop_at:
                raise KeyboardInterrupt
            yield noise(number)


def noise(number: int) -> Batch:
    video = torch.randn(4, 2, 3, 48, 48, generator=torch.Generator().manual_seed(number))
    return Batch(video, torch.tensor([0, 1, 1, 0]), [])


def make_stage(
    folder: Path, corpus: Corpus, tuning: str = "finetune", tau_start: float | None = None, **options: Any
) -> Stage:
    """The same weights every time."""
    plain = {"mixup": 0.0, "cutmix": 0.0, "amp": False, "lr": 0.01, "backbone_lr": 0.01}
    optim = OptimConfig(epochs=STEPS, warmup_epochs=0, batch_size=4, **{**plain, **options})
    torch.manual_seed(0)
    model = create_model("alt_tiny", corpus, frames=2, depth=1, tuning=tuning, tau_start=tau_start).train()
    config = TrainConfig(model=ModelConfig(pretrained="a tower"), optim=optim)
    device, videos = torch.device("cpu"), [Video(Path("a.mp4"), 0)] * 4
    job = Job(config, folder, device, Lists(videos, [], ["a", "b"], [], []), corpus, None, World())
    trained = TrainedModel(model, job.lists.classes, ["{}"], AugmentConfig())
    clips = TrainClips(videos, trained.spec, 0)
    return Stage(job, "alt", trained, clips, open_backend("torch", clips, device)[0], lambda done: None)


def gradients(stage: Stage) -> dict[str, Tensor]:
    stage.loss(noise(0), 0)["loss"].backward()
    found = stage.module.named_parameters()
    return {name: parameter.grad for name, parameter in found if parameter.grad is not None}


def move_tower(stage: Stage) -> None:
    """As training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in stage.module.encoder.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def test_the_term_is_one_minus_the_cosine_of_class_tokens() -> None:
    frames, first = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]]), torch.tensor([[[8.0, 6.0], [0.0, 2.0]]])
    assert distillation_loss(frames, first).item() == pytest.approx(1 - (24 / 25 + 0) / 2)


def test_the_term_is_added_by_its_weight_and_told_besides(tmp_path: Path, corpus: Corpus) -> None:
    """At the start it is 0: the first tower merges its tokens as the trained one does."""
    stage = make_stage(tmp_path, corpus, distill=0.5)
    assert stage.loss(noise(0), 0)["distill"].item() == pytest.approx(0, abs=1e-6)
    start = make_stage(tmp_path, corpus).module
    move_tower(stage)
    found = stage.loss(noise(0), 0)
    video = noise(0).video
    expected = 1 - F.cosine_similarity(stage.module.encode(video).tokens, start.encode(video).tokens, dim=-1)[..., 0]
    assert expected.mean() > 0.01
    torch.testing.assert_close(found["distill"], expected.mean())
    plain = make_stage(tmp_path, corpus)
    move_tower(plain)
    torch.testing.assert_close(found["loss"], plain.loss(noise(0), 0)["loss"] + 0.5 * expected.mean())


def test_without_a_weight_nothing_is_added(tmp_path: Path, corpus: Corpus) -> None:
    """Bit for bit the smoothed cross-entropy."""
    stage = make_stage(tmp_path, corpus)
    assert stage.teacher is None
    found = stage.loss(noise(0), 0)
    assert found.keys() == {"loss"}
    seed = torch.tensor(integer(stage.job.config.seed, Stream.STEP, sample=0))
    logits = stage.module(noise(0).video, stage.classes, seed).logits
    target = F.one_hot(noise(0).label, 2).float() * 0.9 + 0.05
    assert torch.equal(found["loss"], F.cross_entropy(logits, target))


def test_tau_falls_from_the_first_step_to_the_last(tmp_path: Path, corpus: Corpus) -> None:
    """All batches of a step have the same; a loss is by that of its step."""
    stage = make_stage(tmp_path, corpus, tau_start=8.0, accumulate=2)
    assert [stage.tau(number) for number in range(2 * STEPS)] == pytest.approx([8, 8, 4, 4, 2, 2, 1, 1])
    target = F.one_hot(noise(0).label, 2).float() * 0.9 + 0.05
    for number, tau in ((0, 8.0), (7, 1.0)):
        seed = torch.tensor(integer(stage.job.config.seed, Stream.STEP, sample=number))
        logits = [stage.module(noise(0).video, stage.classes, seed, tau=t).logits for t in (tau, 9.0 - tau)]
        right, wrong = (F.cross_entropy(x, target) for x in logits)
        assert torch.equal(stage.loss(noise(0), number)["loss"], right)
        assert not torch.equal(right, wrong)


@pytest.mark.parametrize("tuning", ["finetune", "s"])
def test_the_term_trains_the_tower_alone(tuning: str, tmp_path: Path, corpus: Corpus) -> None:
    """Or its adapters; never the first tower."""
    stages = [make_stage(tmp_path, corpus, tuning, distill=weight) for weight in (0.0, 5.0)]
    for stage in stages:
        move_tower(stage)
    without, with_it = map(gradients, stages)
    assert without.keys() == with_it.keys()
    differ = {name for name in without if not torch.equal(without[name], with_it[name])}
    part = "encoder.visual." if tuning == "finetune" else "encoder.adapters."
    assert differ == {name for name in without if name.startswith(part)} != set()
    assert stages[1].teacher is not None
    assert all(not p.requires_grad and p.grad is None for p in stages[1].teacher.parameters())
    assert not class_tokens(stages[1].teacher, noise(0).video).requires_grad


@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "sharded": True}], ids=["whole", "averaged, in parts"])
def test_resume_keeps_to_the_first_tower(options: dict[str, Any], tmp_path: Path, corpus: Corpus) -> None:
    whole = make_stage(tmp_path, corpus, distill=2.0, **options)
    assert whole.teacher is not None
    first = [parameter.clone() for parameter in whole.teacher.parameters()]
    with RunLog(tmp_path) as log:
        fit(whole, tmp_path / "whole", SaveEvery(100), log)
    assert all(map(torch.equal, first, whole.teacher.parameters()))
    entry = json.loads(log.path.read_text().splitlines()[-1])
    assert 0 < entry["distill"] < entry["loss"]
    interrupted, resumed = (make_stage(tmp_path, corpus, distill=2.0, **options) for _ in range(2))
    interrupted.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, tmp_path / "part", SaveEvery(2))
    fit(resumed, tmp_path / "part", SaveEvery(2))
    expected, found = whole.module.state_dict(), resumed.module.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not any("teacher" in name for name in expected)


@pytest.mark.parametrize(("name", "value"), [("distill", 1.0), ("interpolate", 0.5)])
def test_a_tower_that_cannot_be_kept_to_is_refused(name: str, value: float) -> None:
    optim = OptimConfig(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="model.tuning frozen would keep random weights"):
        TrainConfig(model=ModelConfig(tuning="frozen"))
    with pytest.raises(ArgumentError, match=f"optim.{name} has no effect on model.tuning frozen"):
        TrainConfig(model=ModelConfig(pretrained="openai", tuning="frozen"), optim=optim)
    with pytest.raises(ArgumentError, match=r"random weights are none: set model\.pretrained, pretrain or start_from"):
        TrainConfig(optim=optim)
    TrainConfig(start_from="runs/a", optim=optim)


def test_adapters_leave_nothing_of_the_tower_to_interpolate() -> None:
    """They can be kept near it: their output is the features that are compared."""
    model = ModelConfig(pretrained="openai", tuning="sm")
    with pytest.raises(
        ArgumentError, match=r"optim.interpolate has no effect on model.tuning sm, which trains adapters"
    ):
        TrainConfig(model=model, optim=OptimConfig(interpolate=0.5))
    TrainConfig(model=model, optim=OptimConfig(distill=1.0))


def test_shares_that_are_none_are_refused() -> None:
    with pytest.raises(ArgumentError, match="distill must be >= 0, got -1"):
        OptimConfig(distill=-1)
    with pytest.raises(ArgumentError, match=r"interpolate must be in \[0, 1\], got 2"):
        OptimConfig(interpolate=2)
    with pytest.raises(ArgumentError, match="eval_every tests trained weights, and optim.interpolate keeps others"):
        TrainConfig(start_from="runs/a", eval_every=1, optim=OptimConfig(interpolate=0.5))
