"""The stage that trains ALT on clips of the training list, alone or in several processes."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alt_fast.data.batch import Backend, Batch
from alt_fast.data.dataset import NO_LABEL, EpochSampler, TrainClips
from alt_fast.data.loader import Loader
from alt_fast.data.rng import Stream, integer
from alt_fast.distributed import World, shard
from alt_fast.errors import RunError
from alt_fast.files import QUARANTINE
from alt_fast.inference.trained import TrainedModel
from alt_fast.model.alt import ALT
from alt_fast.model.encoder import RegionEncoder
from alt_fast.training.config import OptimConfig
from alt_fast.training.job import Job
from alt_fast.training.loop import StageSettings
from alt_fast.training.mixing import Mixing
from alt_fast.training.quarantine import Quarantine
from alt_fast.training.schedule import Schedule


class AltStage:
    """Trains `trained.model` in place (see `loop.Stage`).

    A step's batch is in `accumulate` parts a process, so several processes do what one does in as many parts in all.
    With `optim.distill` a frozen copy of the image tower stays beside it, as it is before any checkpoint is read: every
    process has it whole, and no checkpoint needs it. every_epoch: called with the epochs done, after each.
    """

    def __init__(
        self,
        job: Job,
        name: str,
        trained: TrainedModel,
        clips: TrainClips,
        backend: Backend,
        every_epoch: Callable[[int], None],
    ) -> None:
        self.job, self.name, self.clips, self.backend, self.every_epoch = job, name, clips, backend, every_epoch
        self.settings, self.model_config = _settings(job), trained.model.config
        optim = job.config.optim
        self.classes = trained.embed(trained.classes)
        self.teacher = None
        if optim.distill:
            self.teacher = copy.deepcopy(trained.model.encoder).requires_grad_(False).eval()
        self.module, self.forward, self.synchronize = wrap_parallel(trained.model, optim, job.world, job.device)
        self.tested = None if self.module is trained.model else trained.model
        if job.config.compile and name == "alt":  # one compilation a run
            self.forward = torch.compile(self.forward)
        num_classes, seed = len(trained.classes), job.config.seed
        self.mix = Mixing(num_classes, optim.mixup, optim.cutmix, optim.mix_switch, optim.label_smoothing, seed)
        share, path = job.config.data.max_bad_share, job.folder / QUARANTINE
        self.quarantine = Quarantine(path, len(clips.videos), share, writes=job.world.main)

    def learning_rate(self, parameter: str) -> float:
        """Return the rate of a parameter of the model."""
        return self.job.config.optim.rate(parameter)

    def tau(self, number: int) -> float:
        """Return eq. 4's temperature for a batch, given its running number among those of all processes."""
        step = number // (self.settings.accumulate * self.job.world.size)
        return self.model_config.tau_at(self.settings.schedule.progress(step))

    def batches(self, step: int) -> Loader:
        """Return this process's parts of the batches from a step and on."""
        optim, world, seed = self.job.config.optim, self.job.world, self.job.config.seed
        steps = range(step, self.settings.schedule.steps)
        keys = EpochSampler(
            len(self.clips.videos), optim.batch_size, seed, steps, optim.accumulate, world.rank, world.size
        )
        return Loader(self.clips, keys, self.backend, self.job.config.data.loading)

    def loss(self, batch: Batch, number: int) -> dict[str, Tensor]:
        """Return the cross-entropy of a part, mixed and smoothed; videos that cannot be used are put in quarantine.

        With `optim.distill` that much of `distillation_loss` is added, which is told besides, as "distill".
        """
        job, optim = self.job, self.job.config.optim
        self.quarantine.add([failure for failures in job.world.gather(batch.failures) for failure in failures])
        if batch.failures and NO_LABEL in batch.label:
            path, cause = batch.failures[-1]
            raise RunError(f"video after video cannot be used, the last {path}: {cause}. Is data.root right?")
        video, target = self.mix(batch.video, batch.label, number)
        with torch.autocast(job.device.type, torch.bfloat16, enabled=optim.amp):
            seed = torch.tensor(integer(job.config.seed, Stream.STEP, sample=number), device=job.device)
            output = self.forward(video, self.classes, seed, tau=self.tau(number))
            first = None if self.teacher is None else class_tokens(self.teacher, video)
        loss = F.cross_entropy(output.logits.float(), target)
        if first is None:
            return {"loss": loss}
        distill = distillation_loss(output.frame, first)
        return {"loss": loss + optim.distill * distill, "distill": distill.detach()}

    def samples(self, step: int) -> list[str]:
        """Return the paths of a step's videos."""
        videos, batch_size = self.clips.videos, self.settings.batch_size
        keys = EpochSampler(len(videos), batch_size, self.job.config.seed, range(step, step + 1))
        return [str(videos[index].path) for batch in keys for _, index in batch]

    def end_epoch(self, done: int) -> None:
        """Test, when it is time to."""
        self.every_epoch(done)


@torch.no_grad()
def class_tokens(encoder: RegionEncoder, video: Tensor) -> Tensor:
    """Return the class tokens [B, T, d] of a video [B, T, 3, H, W] by an encoder that does not train."""
    return encoder(video.flatten(0, 1)).tokens[:, 0].unflatten(0, video.shape[:2])


def distillation_loss(frames: Tensor, first: Tensor) -> Tensor:
    """Return the mean over frames of 1 - cosine between class tokens and those of the first tower, [..., d].

    The distillation of image features of FROSTER (Huang et al., arXiv 2402.03241) without its residual MLP, which adds
    weights that only training needs.
    """
    return 1 - F.cosine_similarity(frames.float(), first.float(), dim=-1).mean()


def check_batch(optim: OptimConfig, world: World, videos: int) -> None:
    """Raise RunError for a batch that cannot be made of so many training videos, with the size that can."""
    parts = optim.accumulate * world.size
    least = parts * 2 if optim.mixup or optim.cutmix else parts
    if optim.batch_size % least:
        even = ", each even for mixup and cutmix" if least > parts else ""
        raise RunError(
            f"optim.batch_size {optim.batch_size} must be made of {parts} equal parts ({world.size} processes x "
            f"optim.accumulate {optim.accumulate}){even}: {max(1, round(optim.batch_size / least)) * least} can be"
        )
    if optim.batch_size > videos:
        fits = videos // least * least
        raise RunError(
            f"optim.batch_size {optim.batch_size} is more than the {videos} training videos: "
            + (f"--optim.batch-size {fits} is the most that fits" if fits else f"{least} is the least there must be")
        )


def _settings(job: Job) -> StageSettings:
    """Return the numbers of the stage."""
    optim = job.config.optim
    steps_per_epoch = len(job.lists.train) // optim.batch_size
    return StageSettings(
        schedule=Schedule(steps_per_epoch * optim.epochs, steps_per_epoch * optim.warmup_epochs, optim.final_lr),
        steps_per_epoch=steps_per_epoch,
        batch_size=optim.batch_size,
        weight_decay=optim.weight_decay,
        accumulate=optim.accumulate,
        clip_grad=optim.clip_grad,
        max_skipped=optim.max_skipped,
        ema=optim.ema,
        sharded=optim.sharded,
    )


Forward = Callable[..., Any]

_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_SYNCS_BUFFERS = "forward_sync_buffers" if _RENAMED else "broadcast_buffers"
"""DistributedDataParallel's option, which PyTorch 2.13 renamed."""


def wrap_parallel(
    model: ALT, optim: OptimConfig, world: World, device: torch.device
) -> tuple[nn.Module, Forward, Callable[[bool], None]]:
    """Return what trains, what to call, and what to tell before a batch whether its gradients are exchanged.

    What trains is `model` itself, or a copy without the text tower where its weights are in parts or are not tested.
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
    options: dict[str, Any] = {_SYNCS_BUFFERS: False}  # the entities never change
    parallel = DistributedDataParallel(module, **options)

    def synchronize(last: bool) -> None:
        parallel.require_backward_grad_sync = last  # what no_sync() sets, which as a context must span the backward

    return module, parallel, synchronize


def describe_batch(optim: OptimConfig, frozen: bool, world: World, device: torch.device) -> str:
    """Say what a step computes, and at which rates. frozen: the image tower."""
    share = optim.batch_size // (world.size * optim.accumulate)
    parts = f"{world.size} x {optim.accumulate} x {share}" if world.size * optim.accumulate > 1 else ""
    parts = parts and f" ({parts}: processes, accumulated, at once)"
    scaled = "" if optim.scale_from is None else f", scaled from batch {optim.scale_from}"
    lr, backbone_lr = (optim.rate_scale * rate for rate in (optim.lr, optim.backbone_lr))
    processes = "1 process" if world.size == 1 else f"{world.size} processes"
    tower = "image tower frozen" if frozen else f"image tower {backbone_lr:.3g}"
    rates = f"learning rates {lr:.3g}, {tower}{scaled}"
    return f"{processes} on {device.type}, {optim.batch_size} clips a step in all{parts}; {rates}"
