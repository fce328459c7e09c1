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

from alt_fast.distributed import World
from alt_fast.errors import CheckpointError, FileError
from alt_fast.files import make_folder, write_atomically

TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)  # reading names what is missing

FORMAT_VERSION = 2

SAVE_SECONDS = 600.0
"""A checkpoint is written after so long, however few steps that were: they take minutes on some machines."""


@dataclass(frozen=True)
class SaveEvery:
    """How often a stage's state is written, in steps, and how many of the last ones stay."""

    every: int
    keep: int = 1


@dataclass
class TrainState:
    """Where a stage is: steps done, seconds trained, steps skipped, and the moving average of the weights, by name."""

    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    ema: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class StateFiles:
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
        """Return the name of the checkpoint after so many steps."""
        return self.folder / f"{self.name}-{step:08}.state"

    def found(self) -> list[Path]:
        """Return all that are there, oldest first."""
        return sorted(self.folder.glob(f"{self.name}-{'[0-9]' * 8}.state"))

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
        """Write the state, then remove the oldest ones. All processes call it.

        Raises FileError when the disk is full or the like; what was there before is there still.
        """
        path = self.path(state.step)
        content = {"version": FORMAT_VERSION, **vars(state)}
        if self.sharded:
            self._save_parts(path, content | _parts(module, optimizer))
        elif self.world.main:
            whole = content | {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
            write_atomically(path, lambda partial: torch.save(whole, partial))
        if self.world.main:
            for old in self.found()[: -self.keep]:
                _remove(old)

    def restore(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
        """Go on from the last one, if there is any. All processes call it. Raises CheckpointError."""
        if self.world.main:
            make_folder(self.folder)
            for left in self.folder.glob(f".{self.name}-*.partial*"):  # by a process that was killed
                _remove(left)
        (path, *_) = self.world.gather(self.found()[-1] if self.found() else None)
        if path is None:
            return
        try:
            if self.sharded:
                found = self._load_parts(path, _parts(module, optimizer) | {"ema": state.ema})
                weights, moments = found["module"], found["optimizer"]
                set_state_dict(
                    module, optimizer, model_state_dict=weights, optim_state_dict=moments, options=TRAINED_ONLY
                )
            else:
                found = load_state(path)
                module.load_state_dict(found["module"])
                optimizer.load_state_dict(found["optimizer"])
            if found["ema"].keys() != state.ema.keys():
                raise CheckpointError(
                    f"{path} was written {'with' if found['ema'] else 'without'} a moving average of the weights"
                )
            for name, weight in found["ema"].items():
                state.ema[name].copy_(weight)
            state.step, state.seconds, state.skipped = found["step"], found["seconds"], found["skipped"]
        except CheckpointError:
            raise
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as e:
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
            raise FileError(f"cannot write {path}: {_cause(e)}") from e

    def _load_parts(self, path: Path, content: dict[str, Any]) -> dict[str, Any]:
        state = {"version": 0, "step": 0, "seconds": 0.0, "skipped": 0, **content}
        try:
            with _alone_or_together() as alone:
                state_dict_loader.load(state, checkpoint_id=path, no_dist=alone)
        except (CheckpointException, OSError) as e:
            raise CheckpointError(f"cannot read training state {path}: {_cause(e)}") from e
        _check_version(path, state["version"])
        return state


def _cause(error: BaseException) -> str:
    """What went wrong in a line: PyTorch tells whole tracebacks, of every process."""
    return next((str(line).strip() for line in reversed(str(error).splitlines()) if line.strip()), repr(error))


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


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint that is one file. Raises CheckpointError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged file fails in many ways
        raise CheckpointError(f"cannot read training state {path}: {e}") from e
    _check_version(path, state.get("version") if isinstance(state, dict) else None)
    return state


def _check_version(path: Path, version: object) -> None:
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path} has checkpoint version {version}; this release reads version {FORMAT_VERSION}")
