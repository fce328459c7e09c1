"""Train ALT. With no arguments: the whole default job on Motion Shapes, on any machine.

python -m alt_fast.train --compile
python -m alt_fast.train --config kinetics400_b16 --data.train train.csv --data.test val.csv --corpus corpus.json
"""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from alt_fast.checkpoint import WEIGHTS, CheckpointError, TrainedModel, save_model, save_module, write_json
from alt_fast.clip import WeightsError, load_clip
from alt_fast.config import DataConfig, TrainConfig
from alt_fast.corpus import Corpus
from alt_fast.data import motion_shapes
from alt_fast.data.annotations import Subset, Video, read_classes, read_list
from alt_fast.data.dataset import NO_LABEL, EpochSampler, TrainClips
from alt_fast.data.loader import Backend, Batch, Loader, open_backend
from alt_fast.data.rng import Stream, integer
from alt_fast.evaluate import EvalConfig, score_list
from alt_fast.fit import DivergedError, Schedule, Task, fit, parameter_groups
from alt_fast.model import ALT, ModelConfig
from alt_fast.pretrain import pretrain_task
from alt_fast.run_folder import Quarantine, RunError, open_run_folder, pick_device, say
from alt_fast.text import PLAIN_TEMPLATES, TEMPLATES

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Lists:
    """Videos and class names of a job; empty where it has none."""

    train: list[Video]
    test: list[Video]
    classes: list[str]
    unseen: list[Video]
    unseen_classes: list[str]


@dataclass(frozen=True)
class Run:
    """What every stage of a job shares."""

    config: TrainConfig
    folder: Path
    device: torch.device
    lists: Lists
    corpus: Corpus | None
    writer: SummaryWriter

    @property
    def templates(self) -> Sequence[str]:
        return PLAIN_TEMPLATES if self.config.templates == "plain" else TEMPLATES


def run(config: TrainConfig) -> dict[str, Any]:
    """Do the whole job: data, pretraining, ALT, evaluation, and the frame-only comparison. Returns the metrics."""
    started = time.monotonic()
    device = pick_device(config.device)
    if config.compile and device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
        raise RunError("--compile on a CPU needs a C++ compiler, g++ or clang++, and none is on the PATH")
    folder = open_run_folder(config)
    data = prepare_data(config.data)
    lists = read_lists(data)
    say(f"run folder {folder}; {len(lists.train)} training videos of {len(lists.classes)} classes; device {device}")
    corpus = load_corpus(config.corpus, config.model)
    (folder / "classes.csv").write_text("id,name\n" + "".join(f"{i},{c}\n" for i, c in enumerate(lists.classes)))
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        this = Run(config, folder, device, lists, corpus, writer)
        seconds = {"data": time.monotonic() - started}
        model_config = config.model
        if config.pretrain is not None:
            path, seconds["clip"] = pretrain(this)
            model_config = replace(model_config, pretrained=str(path))
        trained, seconds["alt"] = train_model(this, "alt", model_config)
        save_model(folder / WEIGHTS, trained)
        frame_model = None
        if config.frame_only:
            frame_model, seconds["frame_only"] = train_model(this, "frame_only", replace(model_config, frames=1))
        trained_at = time.monotonic()
        metrics = measure(this, trained)
        if frame_model is not None:
            scores = measure(this, frame_model)
            metrics |= {f"frame_only_{name}": value for name, value in scores.items() if name.startswith("top")}
        seconds["evaluation"] = time.monotonic() - trained_at
    metrics |= {
        "seconds": round(sum(seconds.values()), 1),  # over all restarts
        "stage_seconds": {name: round(value, 1) for name, value in seconds.items()},
        "parameters": trained.model.count_parameters(),
        "seed": config.seed,
    }
    write_json(folder / "metrics.json", metrics)
    return metrics


def prepare_data(data: DataConfig) -> DataConfig:
    """Generate the dataset when asked to, and fill in its lists."""
    if data.generate is None:
        return data
    root = Path(data.root or motion_shapes.DEFAULT_ROOT)
    motion_shapes.generate(root, data.shapes)
    return replace(
        data,
        root=None,
        train=str(root / "train.txt"),
        test=str(root / "test.txt"),
        classes=str(root / "classes.csv"),
        unseen=str(root / "unseen.txt"),
        unseen_classes=str(root / "unseen_classes.csv"),
    )


def read_lists(data: DataConfig) -> Lists:
    """Read every list of the job. Raises RunError or AnnotationError."""
    if data.train is None or data.test is None:
        raise RunError("name the videos: --data.train LIST and --data.test LIST (or --data.generate motion_shapes)")

    def read(path: str, names: Sequence[str] | None, subset: Subset) -> tuple[list[Video], list[str]]:
        return read_list(path, names, data.root, subset)

    classes = None if data.classes is None else read_classes(data.classes)
    train, classes = read(data.train, classes, "train")
    test, _ = read(data.test, classes, "test")
    unseen: list[Video] = []
    unseen_classes: list[str] = []
    if data.unseen is not None:
        names = None if data.unseen_classes is None else read_classes(data.unseen_classes)
        unseen, unseen_classes = read(data.unseen, names, "test")
        shared = sorted(set(classes) & set(unseen_classes))
        if shared:
            raise RunError(f"class {shared[0]!r} is in both classes and unseen_classes: it would not be unseen")
    return Lists(train, test, classes, unseen, unseen_classes)


def load_corpus(name: str | None, model: ModelConfig) -> Corpus | None:
    """The corpus file, or the packaged one of that name; None when the model asks for none."""
    if model.query != "entities":
        return None
    if name is None:
        raise RunError("name the text corpus: --corpus FILE (or --model.query learned, which needs none)")
    return Corpus.load(Path(__file__).parent / "corpus" / "motion_shapes.json" if name == "motion_shapes" else name)


def pretrain(this: Run) -> tuple[Path, float]:
    """Train the image and text towers; returns the file of their weights and the seconds it took."""
    config = this.config
    assert config.pretrain is not None
    torch.manual_seed(integer(config.seed, Stream.INIT, sample=0))
    clip = load_clip(config.model.backbone, None, config.model.image_size).to(this.device)
    task = pretrain_task(clip, config.pretrain, config.seed, config.augment.normalize, config.data.workers, this.device)
    seconds = fit(task, this.folder / "clip.state", this.writer, config.checkpoint_every)
    path = this.folder / "clip.safetensors"
    save_module(path, clip)
    return path, seconds


def train_model(this: Run, name: str, model_config: ModelConfig) -> tuple[TrainedModel, float]:
    """Train one ALT; returns it with the seconds it took."""
    config, optim = this.config, this.config.optim
    torch.manual_seed(integer(config.seed, Stream.INIT, sample=1))
    model = ALT(model_config, this.corpus).to(this.device)
    model.embed_corpus()
    trained = TrainedModel(model, this.lists.classes, list(this.templates), config.augment)
    clips = TrainClips(this.lists.train, trained.spec, config.seed)
    dtype = torch.bfloat16 if optim.amp else torch.float32
    backend, why = open_backend(config.data.loader, clips, this.device, dtype, max(1, config.data.workers))
    say(f"{name}: loader {why}")
    task = alt_task(this, name, trained, clips, backend)
    seconds = fit(task, this.folder / f"{name}.state", this.writer, config.checkpoint_every)
    total = task.schedule.steps * optim.batch_size
    say(f"{name}: {task.schedule.steps} steps in {seconds:.0f} s, {total / seconds:.1f} clips/s")
    for way, count in backend.counts.items():
        say(f"{name}: {count} clips {way}")
    return trained, seconds


def alt_task(this: Run, name: str, trained: TrainedModel, clips: TrainClips, backend: Backend) -> Task:
    """The stage that trains `trained.model` in place."""
    config, optim, lists, device = this.config, this.config.optim, this.lists, this.device
    model = trained.model
    steps_per_epoch = len(lists.train) // optim.batch_size
    if steps_per_epoch == 0:
        raise RunError(f"optim.batch_size {optim.batch_size} is more than the {len(lists.train)} training videos")
    schedule = Schedule(steps_per_epoch * optim.epochs, steps_per_epoch * optim.warmup_epochs, optim.final_lr)
    classes = model.text.classes(lists.classes, this.templates)
    forward = torch.compile(model) if config.compile and name == "alt" else model  # one compilation a run
    mix = make_mixup(config, len(lists.classes))
    quarantine = Quarantine(this.folder / "quarantine.jsonl", len(lists.train), config.data.max_bad_share)

    def batches(step: int) -> Loader:
        steps = range(step, schedule.steps)
        keys = EpochSampler(len(lists.train), optim.batch_size, config.seed, steps, optim.accumulate)
        return Loader(clips, keys, backend, config.data.loading)

    def loss(batch: Batch, part: int) -> Tensor:
        quarantine.add(batch.failures)
        if batch.failures and NO_LABEL in batch.label:
            path, cause = batch.failures[-1]
            raise RunError(f"video after video cannot be used, the last {path}: {cause}. Is data.root right?")
        number = integer(config.seed, Stream.STEP, sample=part)
        video, target = mix(batch.video, batch.label, number)
        with torch.autocast(device.type, torch.bfloat16, enabled=optim.amp):
            seed = torch.tensor(number, device=device)
            logits = forward(video, classes, seed).logits
        return F.cross_entropy(logits.float(), target)

    def every_epoch(done: int) -> None:
        if config.eval_every and done % config.eval_every == 0 and done < optim.epochs:
            top1 = score(this, trained, "test", lists.test, lists.classes)["top1"]
            this.writer.add_scalar(f"{name}/top1", top1, done * steps_per_epoch)
            say(f"{name}: epoch {done} of {optim.epochs}, top-1 {top1:.3f}")

    def rate(parameter: str) -> float:
        return optim.backbone_lr if parameter.startswith("encoder.visual.") else optim.lr

    return Task(
        name=name,
        module=model,
        groups=parameter_groups(model, rate, optim.weight_decay),
        schedule=schedule,
        batches=batches,
        loss=loss,
        steps_per_epoch=steps_per_epoch,
        accumulate=optim.accumulate,
        clip_grad=optim.clip_grad,
        every_epoch=every_epoch,
    )


def make_mixup(config: TrainConfig, num_classes: int) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    """Mixup, CutMix and label smoothing of a batch, a pure function of (video, label, number)."""
    optim = config.optim
    smoothing = optim.label_smoothing
    mixup = Mixup(
        mixup_alpha=optim.mixup,
        cutmix_alpha=optim.cutmix,
        switch_prob=optim.mix_switch,
        label_smoothing=smoothing,
        num_classes=num_classes,
    )

    def mix(video: Tensor, label: Tensor, number: int) -> tuple[Tensor, Tensor]:
        if not optim.mixup and not optim.cutmix:
            return video, F.one_hot(label, num_classes).float() * (1 - smoothing) + smoothing / num_classes
        np.random.seed(number)  # timm draws from NumPy's global generator
        mixed, target = mixup(video.flatten(1, 2), label)  # timm mixes images: frames ride as channels
        return mixed.view_as(video), target

    return mix


def score(this: Run, trained: TrainedModel, name: str, videos: Sequence[Video], names: Sequence[str]) -> dict[str, Any]:
    """Single-view scores of videos against class names, as `alt_fast.evaluate` gives them."""
    optim = this.config.optim
    testing = EvalConfig(optim.batch_size // optim.accumulate, loading=this.config.data.loading)
    return score_list(name, videos, names, trained, testing)


def measure(this: Run, trained: TrainedModel) -> dict[str, Any]:
    """Accuracy on the test videos and, zero-shot, on those of unseen classes (fractions of 1)."""
    lists = this.lists
    test = score(this, trained, "test", lists.test, lists.classes)
    metrics = {name: test[name] for name in ("top1", "top5", "chance", "unreadable")} | {"test_videos": test["videos"]}
    if lists.unseen:
        unseen = score(this, trained, "unseen", lists.unseen, lists.unseen_classes)
        metrics |= {
            "top1_unseen_pairs": unseen["top1"],
            "chance_unseen_pairs": unseen["chance"],
            "unseen_videos": unseen["videos"],
            "unreadable": test["unreadable"] + unseen["unreadable"],
        }
    return metrics


def parse(arguments: Sequence[str]) -> TrainConfig:
    """Command line to configuration: a YAML file (by default the Motion Shapes job), changed by options."""
    packaged = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    parser = jsonargparse.ArgumentParser(
        prog="python -m alt_fast.train",
        usage="python -m alt_fast.train [--config FILE] [--output RUN] [--resume] [--compile] [--SETTING VALUE ...]",
        description="Train ALT. Without --config: the default job, Motion Shapes on a tiny CLIP, in minutes on a CPU. "
        "--resume, --compile and --frame_only may stand without a value.",
    )
    parser.add_argument("--config", action="config", help=f"YAML file, or one that comes along: {', '.join(packaged)}")
    parser.add_class_arguments(TrainConfig)
    arguments = list(arguments)
    if not any(argument.split("=")[0] == "--config" for argument in arguments):
        arguments = ["--config", "motion_shapes", *arguments]
    for i, argument in enumerate(arguments[:-1]):
        if argument == "--config" and arguments[i + 1] in packaged:
            arguments[i + 1] = str(CONFIGS / f"{arguments[i + 1]}.yaml")
    switches = {f"--{field.name}" for field in fields(TrainConfig) if field.type is bool}
    following = [*arguments[1:], ""]
    arguments = [
        f"{argument}=true" if argument in switches and value.lower() not in ("true", "false") else argument
        for argument, value in zip(arguments, following, strict=True)
    ]
    try:
        values = parser.instantiate(parser.parse_args(arguments))
        config = TrainConfig(**{field.name: values[field.name] for field in fields(TrainConfig)})
    except ValueError as e:  # a configuration that contradicts itself
        parser.error(str(e))
    return config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    config = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        metrics = run(config)
    except (RunError, CheckpointError, DivergedError, WeightsError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; go on with the same command and --output RUN --resume", file=sys.stderr)
        return 130
    for name, value in metrics.items():
        if isinstance(value, float):
            print(f"{name:32} {value:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
