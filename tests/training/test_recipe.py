"""The paper's recipe, number by number: section 3.4, appendix B, and what it takes over from X-CLIP."""

from pathlib import Path
from typing import Any

import pytest
import torch

from alt_fast.corpus import Corpus
from alt_fast.data.annotations import Video
from alt_fast.data.dataset import TrainClips
from alt_fast.data.loader import open_backend
from alt_fast.distributed import World
from alt_fast.inference.trained import TrainedModel
from alt_fast.model.alt import create_model
from alt_fast.model.text import PROMPTS
from alt_fast.training.alt_stage import AltStage
from alt_fast.training.config import TrainConfig, parse
from alt_fast.training.job import Job, Lists
from alt_fast.training.mixing import Mixing
from alt_fast.training.schedule import Schedule, parameter_groups

OPTIM = {
    "epochs": 30,
    "warmup_epochs": 5,
    "batch_size": 256,
    "lr": 8e-5,
    "backbone_lr": 8e-6,
    "final_lr": 0.01,
    "weight_decay": 0.001,
    "clip_grad": None,
    "mixup": 0.8,
    "cutmix": 1.0,
    "mix_switch": 0.5,
    "label_smoothing": 0.1,
    "ema": 0.0,
    "distill": 0.0,
    "interpolate": 1.0,
}
MODEL = {"r": 8, "depth": 4, "query": "entities", "regions": True, "categories": None, "tau": 1.0, "noise": True}
AUGMENT = {"scales": [1.0, 0.875, 0.75, 0.66], "flip": 0.5, "jitter": 0.8, "gray": 0.2, "normalize": "imagenet"}


def of(settings: object, names: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in names}


@pytest.mark.parametrize(
    ("name", "model", "augment"),
    [
        ("kinetics400_b16", {"backbone": "ViT-B-16", "frames": 8}, {}),
        ("kinetics400_l14", {"backbone": "ViT-L-14", "frames": 8, "depth": 6}, {}),
        ("kinetics600_b16", {"backbone": "ViT-B-16", "frames": 32}, {}),
        ("ssv2_b16", {"backbone": "ViT-B-16", "frames": 32}, {"flip": 0.0}),
    ],
)
def test_fully_supervised(name: str, model: dict[str, Any], augment: dict[str, Any]) -> None:
    config = parse(["--config", name])
    assert of(config.optim, OPTIM) == OPTIM
    assert of(config.model, MODEL | model) == MODEL | model
    assert config.model.pretrained == "openai"
    assert of(config.augment, AUGMENT) == AUGMENT | augment


def test_the_library_s_defaults_are_those_of_alt_b16_on_kinetics_400() -> None:
    config = TrainConfig()
    assert of(config.optim, OPTIM) == OPTIM
    assert of(config.model, MODEL) == MODEL
    assert (config.model.backbone, config.model.frames) == ("ViT-B-16", 8)
    assert of(config.augment, AUGMENT) == AUGMENT


def test_few_shot() -> None:
    """Appendix B: the decoder's rate times ten, the image tower's as it was, batches of 64; section 4.4: 32 frames."""
    config = parse(["--config", "few_shot_b16"])
    few = {"epochs": 50, "batch_size": 64, "lr": 8e-4}
    assert of(config.optim, OPTIM) == OPTIM | few
    assert of(config.model, MODEL) == MODEL
    assert (config.model.backbone, config.model.frames) == ("ViT-B-16", 32)
    assert of(config.augment, AUGMENT) == AUGMENT


def test_zero_shot() -> None:
    """As the paper trains for Tables 3 and 4, and what gained on Motion Shapes."""
    config = parse(["--config", "zero_shot_b16"])
    assert of(config.optim, OPTIM) == OPTIM | {"distill": 1.0}
    assert of(config.model, MODEL) == MODEL
    assert (config.model.backbone, config.model.frames, config.model.pretrained) == ("ViT-B-16", 32, "openai")
    assert of(config.augment, AUGMENT) == AUGMENT


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_by_name(name: str, tmp_path: Path) -> None:
    config = parse(["--config", "kinetics400_b16", "--templates", name])
    job = Job(config, tmp_path, torch.device("cpu"), Lists([], [], [], [], []), None, None, World())
    assert job.templates == PROMPTS[name]


@pytest.fixture
def stage(tmp_path: Path, corpus: Corpus) -> AltStage:
    """ALT's stage by the settings of Kinetics-400, on a tiny model with every part that can train."""
    config = parse(["--config", "kinetics400_b16"])
    device, videos = torch.device("cpu"), [Video(Path("a.mp4"), 0)] * 256
    job = Job(config, tmp_path, device, Lists(videos, [], ["a", "b"], [], []), corpus, None, World())
    model = create_model("alt_tiny", corpus, tuning="stm")
    model.encoder.visual.requires_grad_(True)  # adapters train beside a frozen tower
    trained = TrainedModel(model, job.lists.classes, ["{}"], config.augment)
    clips = TrainClips(videos, trained.spec, 0)
    return AltStage(job, "alt", trained, clips, open_backend("torch", clips, device)[0], lambda done: None)


def test_the_image_tower_has_a_tenth_of_the_rate_of_all_else(stage: AltStage) -> None:
    """Appendix B: "8e-6 for the ViT module ... and 8e-5 for the remaining learnable parts"; biases do not decay."""
    groups = parameter_groups(stage.module, stage.learning_rate, stage.settings.weight_decay)
    found = {parameter: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    parts = set()
    for name, parameter in stage.module.named_parameters():
        if name.startswith("text."):
            assert parameter not in found
            continue
        rate = 8e-6 if name.startswith("encoder.visual.") else 8e-5
        assert found[parameter] == (rate, 0.001 if parameter.ndim > 1 else 0.0), name
        parts.add(name if name == "logit_scale" else ".".join(name.split(".")[:2]))
    towers = {"encoder.visual", "encoder.adapters"}
    assert parts == towers | {"alignment.mlp", "decoder.blocks", "decoder.norm", "decoder.mlp", "logit_scale"}


def test_the_stage_warms_up_mixes_and_smooths_as_asked(stage: AltStage) -> None:
    """256 videos in batches of 256: a step is an epoch."""
    assert stage.settings.schedule == Schedule(steps=30, warmup=5, final=0.01)
    assert stage.mix == Mixing(num_classes=2, mixup=0.8, cutmix=1.0, switch=0.5, smoothing=0.1, seed=0)
