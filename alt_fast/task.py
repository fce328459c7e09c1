"""What one stage of a training job trains: ALT on clips of the training list, alone or in several processes."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alt_fast.checkpoint import TrainedModel
from alt_fast.config import OptimConfig, TrainConfig
from alt_fast.corpus import Corpus
from alt_fast.data.annotations import Video
from alt_fast.data.dataset import NO_LABEL, EpochSampler, TrainClips
from alt_fast.data.loader import Backend, Batch, Loader
from alt_fast.data.rng import Stream, integer
from alt_fast.distributed import World, shard
from alt_fast.fit import Checkpoints, Schedule, Task, parameter_groups
from alt_fast.model import ALT
from alt_fast.run_folder import Quarantine, RunError, say
from alt_fast.run_log import RunLog
from alt_fast.text import PLAIN_TEMPLATES, TEMPLATES


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
    log: RunLog | None
    world: World

    def say(self, message: str) -> None:
        """A line for the person who watches, from one process."""
        if self.world.main:
            say(message)

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.config.checkpoint_every, self.config.keep)

    @property
    def templates(self) -> Sequence[str]:
        return PLAIN_TEMPLATES if self.config.templates == "plain" else TEMPLATES


def alt_task(
    this: Run,
    name: str,
    trained: TrainedModel,
    clips: TrainClips,
    backend: Backend,
    every_epoch: Callable[[int], None] | None,
) -> Task:
    """The stage that trains `trained.model` in place. every_epoch: called with the epochs done.

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
    module, forward, synchronize = spread(model, optim, world, device)
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

    def rate(parameter: str) -> float:
        return optim.rate_scale * (optim.backbone_lr if parameter.startswith("encoder.visual.") else optim.lr)

    return Task(
        name=name,
        module=module,
        groups=parameter_groups(module, rate, optim.weight_decay),
        schedule=schedule,
        batches=batches,
        loss=loss,
        steps_per_epoch=steps_per_epoch,
        batch_size=optim.batch_size,
        accumulate=optim.accumulate,
        clip_grad=optim.clip_grad,
        synchronize=synchronize,
        sharded=optim.sharded,
        max_skipped=optim.max_skipped,
        samples=samples,
        ema=optim.ema,
        tested=None if module is model else model,
        every_epoch=every_epoch,
    )


Forward = Callable[..., Any]


def spread(
    model: ALT, optim: OptimConfig, world: World, device: torch.device
) -> tuple[nn.Module, Forward, Callable[[bool], None]]:
    """What trains: the module, what to call, and what to tell before a batch whether its gradients are exchanged.

    The module is `model` itself, or a copy without the text tower where its weights are in parts or are not tested.
    """
    module = model
    if optim.sharded or optim.ema:
        module = copy.deepcopy(model)
        module.text = None  # type: ignore[assignment]
    if world.size == 1:
        return module, module, lambda last: None
    if optim.sharded:
        # The encoder calls the MLPs of its tower as modules, but reads the weights of attention, which stay whole.
        mlps = [block.mlp for block in module.encoder.visual.transformer.resblocks]
        shard(module, [*mlps, *module.decoder.blocks], device)
        return module, module, module.set_requires_gradient_sync  # type: ignore[return-value]
    parallel = DistributedDataParallel(module, broadcast_buffers=False)  # the entities never change
    return module, parallel, lambda last: setattr(parallel, "require_backward_grad_sync", last)


def describe_batch(optim: OptimConfig, world: World, device: torch.device) -> str:
    """What a step computes, and at which rates."""
    share = optim.batch_size // (world.size * optim.accumulate)
    parts = f"{world.size} x {optim.accumulate} x {share}" if world.size * optim.accumulate > 1 else ""
    parts = parts and f" ({parts}: processes, accumulated, at once)"
    scaled = "" if optim.scale_from is None else f", scaled from batch {optim.scale_from}"
    lr, backbone_lr = (optim.rate_scale * rate for rate in (optim.lr, optim.backbone_lr))
    processes = "1 process" if world.size == 1 else f"{world.size} processes"
    rates = f"learning rates {lr:.3g}, image tower {backbone_lr:.3g}{scaled}"
    return f"{processes} on {device.type}, {optim.batch_size} clips a step in all{parts}; {rates}"


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
