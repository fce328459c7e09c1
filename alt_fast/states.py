"""The checkpoints of a stage, NAME-STEP.state in its folder: a file, or a folder to which every process adds its part.

The last ones stay, and none is ever half there: each is written under another name, flushed and then renamed.
"""

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from alt_fast.checkpoint import FORMAT_VERSION, CheckpointError, check_version, load_state, save_state
from alt_fast.distributed import World

TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)  # reading names what is missing


@dataclass
class Progress:
    """Where a stage is: steps done, seconds trained, steps skipped, and the mean of the weights by parameter."""

    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    mean: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class States:
    """The checkpoints of stage `name` in `folder`, of which the last `keep` stay.

    sharded: each is a folder, to which every process adds its part of the trained weights and of the optimizer; it can
    be gone on with by any number of processes.
    """

    folder: Path
    name: str
    keep: int
    sharded: bool
    world: World

    def path(self, step: int) -> Path:
        """The checkpoint after so many steps."""
        return self.folder / f"{self.name}-{step:08}.state"

    def found(self) -> list[Path]:
        """All that are there, oldest first."""
        return sorted(self.folder.glob(f"{self.name}-{'[0-9]' * 8}.state"))

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Write the state, then remove the oldest ones. All processes call it.

        Raises CheckpointError when the disk is full or the like; what was there before is there still.
        """
        path = self.path(progress.step)
        content = {"version": FORMAT_VERSION, **vars(progress)}
        if self.sharded:
            self._save_parts(path, content | _parts(module, optimizer))
        elif self.world.main:
            save_state(path, content | {"module": module.state_dict(), "optimizer": optimizer.state_dict()})
        if self.world.main:
            for old in self.found()[: -self.keep]:
                _remove(old)

    def restore(self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Go on from the last one, if there is any. All processes call it. Raises CheckpointError."""
        if self.world.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(f".{self.name}-*.partial"):  # by a process that was killed
                _remove(left)
        (path, *_) = self.world.gather(self.found()[-1] if self.found() else None)
        if path is None:
            return
        try:
            if self.sharded:
                state = self._load_parts(path, _parts(module, optimizer) | {"mean": progress.mean})
                weights, moments = state["module"], state["optimizer"]
                set_state_dict(
                    module, optimizer, model_state_dict=weights, optim_state_dict=moments, options=TRAINED_ONLY
                )
            else:
                state = load_state(path)
                module.load_state_dict(state["module"])
                optimizer.load_state_dict(state["optimizer"])
            if state["mean"].keys() != progress.mean.keys():
                raise CheckpointError(
                    f"{path} was written {'with' if state['mean'] else 'without'} a mean of the weights"
                )
            for name, weight in state["mean"].items():
                progress.mean[name].copy_(weight)
            progress.step, progress.seconds, progress.skipped = state["step"], state["seconds"], state["skipped"]
        except CheckpointError:
            raise
        except (KeyError, RuntimeError, ValueError) as e:
            raise CheckpointError(f"{path} does not fit this run: {e}") from e

    def _save_parts(self, path: Path, content: dict[str, Any]) -> None:
        partial = path.with_name(f".{path.name}.partial")
        try:
            with _alone_or_together() as alone:
                state_dict_saver.save(content, checkpoint_id=partial, no_dist=alone)
            if self.world.main:
                os.replace(partial, path)
            self.world.gather(None)  # nobody goes on before it has its name
        except (CheckpointException, OSError, RuntimeError) as e:
            if self.world.main:
                shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(f"cannot write {path}: {e}") from e

    def _load_parts(self, path: Path, content: dict[str, Any]) -> dict[str, Any]:
        state = {"version": 0, "step": 0, "seconds": 0.0, "skipped": 0, **content}
        try:
            with _alone_or_together() as alone:
                state_dict_loader.load(state, checkpoint_id=path, no_dist=alone)
        except (CheckpointException, OSError) as e:
            raise CheckpointError(f"cannot read training state {path}: {e}") from e
        check_version(path, state["version"])
        return state


@contextlib.contextmanager
def _alone_or_together() -> Iterator[bool]:
    """Whether this is the only process; then PyTorch's warning that it is goes unheard."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield not dist.is_initialized()


def _parts(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Trained weights and optimizer state by parameter name, each process's own part."""
    weights, moments = get_state_dict(module, optimizer, options=TRAINED_ONLY)
    return {"module": weights, "optimizer": moments}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
