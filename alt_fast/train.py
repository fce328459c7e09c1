"""Train ALT. With no arguments: the whole default job on Motion Shapes, on any machine.

python -m alt_fast.train --compile
python -m alt_fast.train --config kinetics400_b16 --data.train train.csv --data.test val.csv --corpus corpus.json
torchrun --nproc-per-node 8 -m alt_fast.train --config kinetics400_b16 ... --output RUN
"""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

from alt_fast.checkpoint import (
    WEIGHTS,
    CheckpointError,
    TrainedModel,
    load,
    load_weights,
    save_model,
    save_module,
    write_json,
)
from alt_fast.clip import WeightsError, load_clip
from alt_fast.config import DataConfig, TrainConfig
from alt_fast.corpus import Corpus
from alt_fast.data import motion_shapes
from alt_fast.data.annotations import Subset, Video, read_classes, read_list
from alt_fast.data.dataset import NO_LABEL, EpochSampler, TrainClips
from alt_fast.data.loader import Backend, Batch, Loader, open_backend
from alt_fast.data.rng import Stream, integer
from alt_fast.distributed import World, join_world, leave_world
from alt_fast.evaluate import EvalConfig, score_list
from alt_fast.fit import DivergedError, Schedule, Task, TerminatedError, fit, parameter_groups
from alt_fast.model import ALT, ModelConfig
from alt_fast.pretrain import pretrain_task
from alt_fast.run_folder import Quarantine, RunError, open_run_folder, pick_device, say
from alt_fast.text import PLAIN_TEMPLATES, TEMPLATES

METRICS = "metrics.json"
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
    writer: SummaryWriter | None
    world: World

    def say(self, message: str) -> None:
        """A line for the person who watches, from one process."""
        if self.world.main:
            say(message)

    @property
    def templates(self) -> Sequence[str]:
        return PLAIN_TEMPLATES if self.config.templates == "plain" else TEMPLATES


def run(config: TrainConfig, world: World | None = None) -> dict[str, Any]:
    """Do the whole job: data, pretraining, ALT, evaluation, and the frame-only comparison. Returns the metrics.

    world: the processes that share it. The main one makes the data, pretrains and writes all files.
    """
    world = world or World()
    started = time.monotonic()
    device = pick_device(config.device)
    if config.compile and device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
        raise RunError("--compile on a CPU needs a C++ compiler, g++ or clang++, and none is on the PATH")
    if world.restarts:
        config = replace(config, resume=True)
    made = (open_run_folder(config), prepare_data(config.data)) if world.main else None
    folder, data = next(item for item in world.gather(made) if item is not None)
    lists = read_lists(data)
    corpus = load_corpus(config)
    with SummaryWriter(str(folder / "tensorboard")) if world.main else nullcontext() as writer:
        this = Run(config, folder, device, lists, corpus, writer, world)
        this.say(f"run folder {folder}; {len(lists.train)} videos of {len(lists.classes)} classes to train on")
        processes = "1 process" if world.size == 1 else f"{world.size} processes"
        this.say(f"{processes} on {device.type}, {config.optim.batch_size} clips a step in all")
        if world.main:
            names = "".join(f"{i},{name}\n" for i, name in enumerate(lists.classes))
            (folder / "classes.csv").write_text(f"id,name\n{names}")
        seconds = {"data": time.monotonic() - started}
        model_config = config.model
        if config.pretrain is not None:
            path, seconds["clip"] = pretrain(this)
            model_config = replace(model_config, pretrained=str(path))
        trained, seconds["alt"] = train_model(this, "alt", model_config)
        if world.main:
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
    if world.main:
        write_json(folder / METRICS, metrics)
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


def load_corpus(config: TrainConfig) -> Corpus | None:
    """The corpus file, or the packaged one of that name; None when the model asks for none."""
    name = config.corpus
    if config.model.query != "entities":
        return None
    if name is None and config.start_from is not None:
        return load(config.start_from).model.corpus
    if name is None:
        raise RunError("name the text corpus: --corpus FILE (or --model.query learned, which needs none)")
    return Corpus.load(Path(__file__).parent / "corpus" / "motion_shapes.json" if name == "motion_shapes" else name)


def pretrain(this: Run) -> tuple[Path, float]:
    """Train the image and text towers in the main process; returns the file of their weights, and the seconds."""
    path, seconds = this.folder / "clip.safetensors", 0.0
    if this.world.main:
        seconds = _pretrain(this, path)
    return path, sum(this.world.gather(seconds))


def _pretrain(this: Run, path: Path) -> float:
    config = this.config
    assert config.pretrain is not None
    torch.manual_seed(integer(config.seed, Stream.INIT, sample=0))
    clip = load_clip(config.model.backbone, None, config.model.image_size).to(this.device)
    task = pretrain_task(clip, config.pretrain, config.seed, config.augment.normalize, config.data.workers, this.device)
    seconds = fit(task, this.folder / "clip.state", this.writer, config.checkpoint_every)
    save_module(path, clip)
    return seconds


def train_model(this: Run, name: str, model_config: ModelConfig) -> tuple[TrainedModel, float]:
    """Train one ALT; returns it with the seconds it took."""
    config, optim = this.config, this.config.optim
    torch.manual_seed(integer(config.seed, Stream.INIT, sample=1))
    model = ALT(model_config, this.corpus).to(this.device)
    if config.start_from is not None:
        load_weights(model, config.start_from)
    model.embed_corpus()
    trained = TrainedModel(model, this.lists.classes, list(this.templates), config.augment)
    clips = TrainClips(this.lists.train, trained.spec, config.seed)
    dtype = torch.bfloat16 if optim.amp else torch.float32
    backend, why = open_backend(config.data.loader, clips, this.device, dtype, max(1, config.data.workers))
    this.say(f"{name}: loader {why}")
    task = alt_task(this, name, trained, clips, backend)
    seconds = fit(task, this.folder / f"{name}.state", this.writer, config.checkpoint_every, this.world)
    total = task.schedule.steps * optim.batch_size
    this.say(f"{name}: {task.schedule.steps} steps in {seconds:.0f} s, {total / seconds:.1f} clips/s")
    for way, count in sum(this.world.gather(backend.counts), Counter()).items():
        this.say(f"{name}: {count} clips {way}")
    return trained, seconds


def alt_task(this: Run, name: str, trained: TrainedModel, clips: TrainClips, backend: Backend) -> Task:
    """The stage that trains `trained.model` in place.

    A step's batch is in `accumulate` parts a process, so several processes do what one does in as many parts in all.
    """
    config, optim, lists, device, world = this.config, this.config.optim, this.lists, this.device, this.world
    model = trained.model
    parts = optim.accumulate * world.size
    if optim.batch_size % parts or ((optim.mixup or optim.cutmix) and optim.batch_size // parts % 2):
        raise RunError(
            f"optim.batch_size {optim.batch_size} must be made of {parts} equal parts ({world.size} processes x "
            f"optim.accumulate {optim.accumulate}), each even for mixup and cutmix"
        )
    steps_per_epoch = len(lists.train) // optim.batch_size
    if steps_per_epoch == 0:
        raise RunError(f"optim.batch_size {optim.batch_size} is more than the {len(lists.train)} training videos")
    schedule = Schedule(steps_per_epoch * optim.epochs, steps_per_epoch * optim.warmup_epochs, optim.final_lr)
    classes = model.text.classes(lists.classes, this.templates)
    model.encoder.activation_checkpointing = optim.activation_checkpointing
    parallel = None
    if world.size > 1:
        parallel = DistributedDataParallel(model, broadcast_buffers=False)  # the entities never change
    forward: Callable[..., Any] = parallel or model
    if config.compile and name == "alt":  # one compilation a run
        forward = torch.compile(forward)
    mix = make_mixup(config, len(lists.classes))
    quarantine = Quarantine(
        this.folder / "quarantine.jsonl", len(lists.train), config.data.max_bad_share, writes=world.main
    )

    def batches(step: int) -> Loader:
        steps = range(step, schedule.steps)
        keys = EpochSampler(
            len(lists.train), optim.batch_size, config.seed, steps, optim.accumulate, world.rank, world.size
        )
        return Loader(clips, keys, backend, config.data.loading)

    def samples(step: int) -> list[str]:
        keys = EpochSampler(len(lists.train), optim.batch_size, config.seed, range(step, step + 1))
        return [str(lists.train[index].path) for batch in keys for _, index in batch]

    def loss(batch: Batch, part: int) -> Tensor:
        quarantine.add([failure for failures in world.gather(batch.failures) for failure in failures])
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
            if this.writer is not None:
                this.writer.add_scalar(f"{name}/top1", top1, done * steps_per_epoch)
            this.say(f"{name}: epoch {done} of {optim.epochs}, top-1 {top1:.3f}")

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
        parallel=parallel,
        max_skipped=optim.max_skipped,
        samples=samples,
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
    return score_list(name, videos, names, trained, testing, this.world)


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
    world = join_world(config.device)
    try:
        metrics = run(config, world)
    except TerminatedError as e:
        print(f"{e}; go on with the same command and --output RUN --resume", file=sys.stderr)
        return 143  # as a process that SIGTERM ends
    except (RunError, CheckpointError, DivergedError, WeightsError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; go on with the same command and --output RUN --resume", file=sys.stderr)
        return 130
    finally:
        leave_world()
    for name, value in metrics.items():
        if world.main and isinstance(value, float):
            print(f"{name:32} {value:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
