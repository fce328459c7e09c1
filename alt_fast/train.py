"""Train ALT. With no arguments: the whole default job on Motion Shapes, on any machine.

python -m alt_fast.train --compile
python -m alt_fast.train --config kinetics400_b16 --data.train train.csv --data.test val.csv --corpus corpus.json
torchrun --nproc-per-node 8 -m alt_fast.train --config kinetics400_b16 ... --output RUN
"""

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import jsonargparse
import torch

from alt_fast.checkpoint import (
    WEIGHTS,
    CheckpointError,
    TrainedModel,
    load,
    load_weights,
    save_model,
    save_module,
    write_atomically,
    write_json,
)
from alt_fast.clip import WeightsError, load_clip
from alt_fast.config import DataConfig, TrainConfig
from alt_fast.corpus import Corpus
from alt_fast.data import motion_shapes
from alt_fast.data.annotations import Subset, Video, read_classes, read_list
from alt_fast.data.dataset import TrainClips
from alt_fast.data.loader import open_backend
from alt_fast.data.rng import Stream, integer
from alt_fast.distributed import World, join_world, leave_world
from alt_fast.fit import DivergedError, TerminatedError, fit
from alt_fast.model import ALT, ModelConfig
from alt_fast.model_card import model_card
from alt_fast.pretrain import pretrain_task
from alt_fast.run_folder import METRICS, RunError, open_run_folder, pick_device
from alt_fast.run_log import RunLog
from alt_fast.scoring import EvalConfig, score_list
from alt_fast.task import Lists, Run, alt_task, describe_batch

BEST = "best.safetensors"
CONFIGS = Path(__file__).parent / "configs"


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
    with RunLog(folder) if world.main else nullcontext() as log:
        this = Run(config, folder, device, lists, corpus, log, world)
        this.say(f"run folder {folder}; {len(lists.train)} videos of {len(lists.classes)} classes to train on")
        this.say(describe_batch(config.optim, world, device))
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
        if config.eval_every and world.main:
            keep_best(folder, trained, config.optim.epochs, metrics["top1"])
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
        card = model_card(trained, folder)
        write_atomically(folder / "README.md", lambda partial: partial.write_text(card, encoding="utf-8"))
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
    seconds = fit(task, this.folder, this.checkpoints, this.log)
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
    task = alt_task(this, name, trained, clips, backend, partial(test_epoch, this, name, trained))
    seconds = fit(task, this.folder, this.checkpoints, this.log, this.world)
    total = task.schedule.steps * optim.batch_size
    this.say(f"{name}: {task.schedule.steps} steps in {seconds:.0f} s, {total / seconds:.1f} clips/s")
    for way, count in sum(this.world.gather(backend.counts), Counter()).items():
        this.say(f"{name}: {count} clips {way}")
    return trained, seconds


def test_epoch(this: Run, name: str, trained: TrainedModel, done: int) -> None:
    """Test after so many epochs when it is time to, and keep the best weights."""
    config = this.config
    if not config.eval_every or done % config.eval_every or done == config.optim.epochs:
        return
    top1 = score(this, trained, "test", this.lists.test, this.lists.classes)["top1"]
    if this.log is not None:
        this.log.score(name, done * (len(this.lists.train) // config.optim.batch_size), top1=top1)
        if name == "alt":
            keep_best(this.folder, trained, done, top1)
    this.say(f"{name}: epoch {done} of {config.optim.epochs}, top-1 {top1:.3f}")


def keep_best(folder: Path, trained: TrainedModel, epoch: int, top1: float) -> None:
    """Write the weights beside those of the best epoch so far when they are better. best.json says which it is."""
    record = folder / "best.json"
    if not record.exists() or json.loads(record.read_text())["top1"] < top1:
        save_model(folder / BEST, trained)
        write_json(record, {"epoch": epoch, "top1": top1, "chosen_on": "the test list"})


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
