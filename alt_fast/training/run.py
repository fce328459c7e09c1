"""A training job from its settings to a run folder: data, pretraining, ALT, tests, and the frame-only comparison."""

import copy
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from alt_fast.corpus import PACKAGED, Corpus
from alt_fast.data.annotations import CLASS_COLUMNS, Video
from alt_fast.data.dataset import TrainClips
from alt_fast.data.loader import open_backend
from alt_fast.data.motion_shapes import LEVELS
from alt_fast.data.rng import Stream, integer
from alt_fast.distributed import World, pick_device
from alt_fast.errors import ArgumentError, RunError
from alt_fast.files import (
    BEST,
    BEST_RECORD,
    CARD,
    CLASSES,
    CLIP,
    METRICS,
    WEIGHTS,
    read_json,
    write_csv,
    write_json,
    write_text,
)
from alt_fast.inference.model_card import model_card
from alt_fast.inference.scoring import EvalConfig
from alt_fast.inference.speed import check_compiler
from alt_fast.inference.trained import TrainedModel, load, load_weights, save_model, save_module
from alt_fast.inference.zero_shot import find_unseen, score_zero_shot
from alt_fast.model.alignment import certainty
from alt_fast.model.alt import ALT
from alt_fast.model.clip_weights import build_clip, move_back
from alt_fast.model.config import ModelConfig
from alt_fast.training.alt_stage import AltStage, check_batch, describe_batch
from alt_fast.training.clip_stage import ClipStage
from alt_fast.training.config import PretrainConfig, TrainConfig
from alt_fast.training.job import Job
from alt_fast.training.lists import check_presence, count_missing, prepare_data, read_lists, say_overlap
from alt_fast.training.loop import fit
from alt_fast.training.run_folder import check_same_inputs, open_run_folder
from alt_fast.training.run_log import RunLog


def run(config: TrainConfig, world: World | None = None) -> dict[str, Any]:
    """Do the whole job: data, pretraining, ALT, evaluation, and the frame-only comparison. Returns the metrics.

    world: the processes that share it. The main one makes the data, pretrains and writes all files.
    """
    world = world or World()
    device = pick_device(config.device)
    if config.compile:
        check_compiler(device, "--compile")
    with ExitStack() as open_files:
        folder, log = None, None
        if world.main:
            folder = open_files.enter_context(open_run_folder(config, world))
        (folder, *_) = world.gather(folder)
        assert folder is not None
        started = time.monotonic()
        (data, *_) = world.gather(prepare_data(config.data, folder) if world.main else None)
        assert data is not None
        lists, corpus = read_lists(data), load_corpus(config)
        check_batch(config.optim, world, len(lists.train))
        if world.main:
            check_same_inputs(folder, config, lists, corpus)
            check_presence(data, lists)
            say_overlap(lists)
            log = open_files.enter_context(RunLog(folder))
        job = Job(config, folder, device, lists, corpus, log, world)
        return run_stages(job, time.monotonic() - started)


def run_stages(job: Job, data_seconds: float) -> dict[str, Any]:
    """Train and test; writes the files of the run and returns its metrics."""
    config, folder, lists = job.config, job.folder, job.lists
    job.print_line(f"run folder {folder}; {len(lists.train)} videos of {len(lists.classes)} classes to train on")
    if config.corpus is not None and config.model.query != "entities":
        job.print_line(f"corpus {config.corpus} is not used: model.query is {config.model.query}, not entities")
    job.print_line(describe_batch(config.optim, config.model.tuning != "finetune", job.world, job.device))
    if job.world.main:
        write_csv(folder / CLASSES, CLASS_COLUMNS, enumerate(lists.classes))
    seconds, model_config = {"data": data_seconds}, config.model
    if config.pretrain is not None:
        path, seconds["clip"] = pretrain(job)
        model_config = replace(model_config, pretrained=str(path))
    trained, seconds["alt"] = train_model(job, "alt", model_config)
    if job.world.main:
        save_model(folder / WEIGHTS, trained)
    frame_model = None
    if config.frame_only:
        frame_model, seconds["frame_only"] = train_model(job, "frame_only", replace(model_config, frames=1))
    trained_at = time.monotonic()
    metrics = measure(job, trained)
    if config.eval_every and job.world.main:
        keep_best(folder, trained, config.optim.epochs, metrics["top1"])
    if frame_model is not None:
        scores = measure(job, frame_model)
        metrics |= {f"frame_only_{name}": value for name, value in scores.items() if name.startswith("top")}
    seconds["evaluation"] = time.monotonic() - trained_at
    metrics |= {
        "seconds": round(sum(seconds.values()), 1),  # over all restarts
        "stage_seconds": {name: round(value, 1) for name, value in seconds.items()},
        "missing": count_missing(folder),
        "parameters": trained.model.count_parameters(),
        "seed": config.seed,
    }
    if job.world.main:
        write_json(folder / METRICS, metrics)  # also where the probe fails
        metrics["alignment"] = trained.probe_alignment(lists.test, lists.classes, single_view(job))
        write_json(folder / METRICS, metrics)
        write_text(folder / CARD, model_card(trained, folder))
    return metrics


def load_corpus(config: TrainConfig) -> Corpus | None:
    """Return the corpus that the job names; None when the model asks for none. Raises RunError or CorpusError."""
    name = config.corpus
    if config.model.query != "entities":
        return None
    level = config.data.shapes.level
    if config.data.generate is not None and name in PACKAGED and name != LEVELS[level].CORPUS:
        raise RunError(f"corpus {name} is not that of level {level}: take --config motion_shapes_2 for levels 2 and 3")
    if name is None and config.start_from is not None:
        corpus = load(config.start_from).model.corpus
        kept = set() if corpus is None else {entity.category for entity in corpus.entities}
        if kept and (lacking := sorted(set(config.model.categories or ()) - kept)):
            raise RunError(f"{config.start_from} kept no entity of category {', '.join(lacking)}: name its --corpus")
        return corpus
    if name is None:
        raise RunError("name the text corpus: --corpus FILE (or --model.query learned, which needs none)")
    return Corpus.load(name)


def pretrain(job: Job) -> tuple[Path, float]:
    """Train the image and text towers in the main process; returns the file of their weights, and the seconds."""
    path, seconds = job.folder / CLIP, 0.0
    if job.world.main:
        seconds = _pretrain(job, path)
    return path, sum(job.world.gather(seconds))


def _pretrain(job: Job, path: Path) -> float:
    config = job.config
    assert config.pretrain is not None
    stage = clip_stage(config, config.pretrain, job.device)
    seconds = fit(stage, job.folder, job.saving, job.log)
    save_module(path, stage.module)
    return seconds


def clip_stage(
    config: TrainConfig, pretrain: PretrainConfig, device: torch.device, kind: type[ClipStage] = ClipStage
) -> ClipStage:
    """Return the towers of a job that are to be pretrained, with what they start from."""
    torch.manual_seed(integer(config.seed, Stream.INIT, sample=0))
    clip = build_clip(config.model.backbone, config.model.pretrained, config.model.image_size)
    if config.model.pretrained is None:
        # Wider than CLIP's 0.02, which needs far longer training to tell words apart.
        torch.nn.init.normal_(clip.token_embedding.weight, std=0.3)
    if pretrain.positions != 1:
        if clip.visual.positional_embedding is None:
            raise ArgumentError(
                f"pretrain.positions is for fixed positions, and {config.model.backbone!r} has rotary ones"
            )
        clip.visual.positional_embedding.data *= pretrain.positions
    clip.to(device)
    level, normalize = config.data.shapes.level, config.augment.normalize
    return kind(clip, pretrain, level, config.seed, normalize, config.data.workers, device)


def train_model(job: Job, name: str, model_config: ModelConfig) -> tuple[TrainedModel, float]:
    """Train one ALT; returns it with the seconds it took."""
    config, optim = job.config, job.config.optim
    torch.manual_seed(integer(config.seed, Stream.INIT, sample=1))
    model = ALT(model_config, job.corpus, optim.activation_checkpointing).to(job.device)
    trained = TrainedModel(model, job.lists.classes, list(job.templates), config.augment)
    if config.start_from is not None:
        load_weights(trained, config.start_from)
    if job.lists.unseen:  # what testing would refuse, after all of the training
        find_unseen("data.unseen", job.lists.unseen, job.lists.unseen_classes, trained.seen_classes)
        trained.embed(job.lists.unseen_classes)
    model.embed_corpus()
    warn_of_chance(job, model)
    clips = TrainClips(job.lists.train, trained.spec, config.seed)
    dtype = torch.bfloat16 if optim.amp else torch.float32
    backend, why = open_backend(config.data.loader, clips, job.device, dtype, max(1, config.data.workers))
    job.print_line(f"{name}: loader {why}")
    stage = AltStage(job, name, trained, clips, backend, partial(test_epoch, job, name, trained))
    start = copy.deepcopy(model.encoder.visual.state_dict()) if optim.interpolate < 1 else {}
    seconds = fit(stage, job.folder, job.saving, job.log, job.world)
    if start:
        move_back(model.encoder.visual, start, optim.interpolate)
    steps = stage.settings.schedule.steps
    total = steps * optim.batch_size
    job.print_line(f"{name}: {steps} steps in {seconds:.0f} s, {total / seconds:.1f} clips/s")
    for way, count in sum(job.world.gather(backend.counts), Counter()).items():
        job.print_line(f"{name}: {count} clips {way}")
    return trained, seconds


def warn_of_chance(job: Job, model: ALT) -> None:
    """Say so when the noise of eq. 4 decides more often than the tokens."""
    if model.corpus is None or not model.config.noise:
        return
    sure = certainty(model.alignment.entities, model.config.tau)
    if sure < 0.5:
        job.print_line(
            f"with tau = {model.config.tau:g}, {len(model.corpus):,} entities and noise, a token equal to an entity "
            f"chooses it in {100 * sure:.2g} % of steps. A lower model.tau makes the choice surer, or model.noise false"
        )


def test_epoch(job: Job, name: str, trained: TrainedModel, done: int) -> None:
    """Test after so many epochs when it is time to, and keep the best weights."""
    config = job.config
    if not config.eval_every or done % config.eval_every or done == config.optim.epochs:
        return
    top1 = score(job, trained, "test", job.lists.test, job.lists.classes)["top1"]
    if job.log is not None:
        job.log.score(name, done * (len(job.lists.train) // config.optim.batch_size), top1=top1)
        if name == "alt":
            keep_best(job.folder, trained, done, top1)
    job.print_line(f"{name}: epoch {done} of {config.optim.epochs}, top-1 {top1:.3f}")


def keep_best(folder: Path, trained: TrainedModel, epoch: int, top1: float) -> None:
    """Write the weights beside those of the best epoch so far when they are better. best.json says which it is."""
    record = folder / BEST_RECORD
    kept = record.exists() and (folder / BEST).exists()
    if not kept or read_json(record, "top1")["top1"] < top1:
        save_model(folder / BEST, trained)
        write_json(record, {"epoch": epoch, "top1": top1, "chosen_on": "the test list"})


def score(job: Job, trained: TrainedModel, name: str, videos: Sequence[Video], names: Sequence[str]) -> dict[str, Any]:
    """Return single-view scores of videos against class names, as `alt-fast evaluate` gives them."""
    return trained.score(name, videos, names, single_view(job), job.world)


def single_view(job: Job) -> EvalConfig:
    """Return how a job tests: each process as many clips at once as in training."""
    optim = job.config.optim
    return EvalConfig(optim.batch_size // (optim.accumulate * job.world.size), loading=job.config.data.loading)


def measure(job: Job, trained: TrainedModel) -> dict[str, Any]:
    """Return accuracy on the test videos and, zero-shot, on the list of unseen classes (fractions of 1).

    "zero_shot" is over all of that list, classes trained on included; "unseen_pairs" over the others alone.
    """
    lists = job.lists
    test = score(job, trained, "test", lists.test, lists.classes)
    metrics = {name: test[name] for name in ("top1", "top5", "chance", "unreadable")} | {"test_videos": test["videos"]}
    if lists.unseen:
        zero = score_zero_shot(trained, "unseen", lists.unseen, lists.unseen_classes, single_view(job), job.world)
        metrics |= {
            "top1_zero_shot": zero["top1"],
            "chance_zero_shot": zero["chance"],
            "zero_shot_videos": zero["videos"],
            "top1_unseen_pairs": zero["unseen"]["top1"],
            "chance_unseen_pairs": zero["unseen"]["chance"],
            "unseen_videos": zero["unseen"]["videos"],
            "shared_classes": zero["shared"],
            "unreadable": test["unreadable"] + zero["unreadable"],
        }
    return metrics
