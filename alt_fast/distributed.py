"""The processes of one job, as torchrun starts them; a job without torchrun is a world of one."""

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alt_fast.errors import ArgumentError

T = TypeVar("T")

_LEFT: list[dist.ProcessGroup | None] = []
"""The groups that this process has left. PyTorch ends a group where its last reference goes, with Python's lock held if
that is a DistributedDataParallel's, and may then wait for ever for a thread of gloo that waits for the lock."""

PATIENCE = timedelta(days=7)
"""How long a process waits for the others. PyTorch's 10 minutes (NCCL) and 30 (gloo) end a job whose shares of the
videos take unequally long, or whose main process prepares data alone. A process that dies is torchrun's to notice."""


@dataclass(frozen=True)
class World:
    """This process among `size` of them. local_rank: its number on its machine, which is that of its GPU."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    @property
    def restarts(self) -> int:
        """How often torchrun started the processes anew because one of them died."""
        return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))

    @property
    def launch(self) -> str | None:
        """What names this launch of torchrun, the same when it starts the processes anew; None without torchrun.

        Its --rdzv-id, which --standalone draws. Where none is given the id is "none", and a launch is named by its
        folder of logs, LAUNCH/attempt_N/RANK/error.json; it stays "none" where there are no logs.
        """
        name = os.environ.get("TORCHELASTIC_RUN_ID")
        logs = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parents
        return logs[2].name if name == "none" and len(logs) > 3 else name

    def gather(self, item: T) -> list[T]:
        """Return what every process has, by rank; anything that can be pickled. All must call it."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def mean(self, *values: float) -> list[float]:
        """Return the means over the processes, the same on all of them. All must call it."""
        if self.size == 1:
            return list(values)
        total: Tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return (total / self.size).tolist()


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Be one of the processes that torchrun started, if it did, and say goodbye to them at the end.

    device: "cpu", "cuda", "cuda:N" or "auto". Raises ArgumentError for GPUs that several processes would share.
    """
    try:
        yield _join(device)
    finally:
        if dist.is_initialized():
            _LEFT.append(dist.group.WORLD)
            dist.destroy_process_group()


def _join(device: str) -> World:
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return World()
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        gpu = device != "cpu" and torch.cuda.is_available()
        if gpu:
            _take_gpu(device, world)
        # torchrun keeps one store over restarts: without a prefix of its own, an attempt may find dead addresses in it.
        shared, _, _ = next(iter(dist.rendezvous("env://")))  # type: ignore[attr-defined]
        store = dist.PrefixStore(f"attempt {world.restarts}", shared)  # type: ignore[attr-defined]
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE, store=store, rank=world.rank, world_size=world.size)
    return world


def _take_gpu(device: str, world: World) -> None:
    """Make the GPU of this process's number the one that "cuda" means. Raises ArgumentError where there is none."""
    gpus = torch.cuda.device_count()
    if ":" in device:
        raise ArgumentError(f"device {device!r} is one GPU, and torchrun's processes take one each: ask for cuda")
    if world.local_rank >= gpus:
        raise ArgumentError(
            f"process {world.local_rank + 1} of this machine has no GPU of its own: this PyTorch sees {gpus}, which is "
            "the most for torchrun's --nproc-per-node"
        )
    torch.cuda.set_device(world.local_rank)


def shard(model: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Split a model's weights over the processes (FSDP2), those of `blocks` apart: each is whole only while it runs."""
    from torch.distributed.device_mesh import init_device_mesh  # these take a second
    from torch.distributed.fsdp import fully_shard

    # Nothing writes into what a block returns, so that it is a view, which this warns of, does no harm.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def pick_device(name: str) -> torch.device:
    """Return the device of that name: "cpu", "cuda", "cuda:N", or "auto", CUDA where there is a GPU.

    Raises ArgumentError for any other, and for a GPU that is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    if name == "cpu":
        return torch.device(name)
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number.isdecimal() or name == "cuda"):
        raise ArgumentError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if int(number or 0) >= gpus:
        raise ArgumentError(
            f"device {name!r} was asked for, but this PyTorch sees {gpus or 'no'} GPU{'s'[: gpus != 1]}"
        )
    return torch.device(name)
