"""Commands in processes of their own, most of them forked from one that has imported everything.

A fork differs from `python -m` only in the seconds that importing takes: it has its own process id, group, environment,
output and exit status, and can be killed.
"""

import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path

import pytest

PRELOADED = (
    "alt_fast.inference.assess",
    "alt_fast.inference.statistics",
    "alt_fast.training.run",
    "jsonargparse",
    "tensorboard.backend.event_processing.event_accumulator",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend",
    "torch.distributed.fsdp",
    "torch.distributed.run",
    "torch.optim._multi_tensor",
    "torch.utils.tensorboard",
)
"""What the forked process has imported. It has computed nothing: threads do not survive a fork."""


class Command:
    """A running command, in a group of its own; leaving it as a context manager kills what is left of it."""

    def __init__(self, pid: int, poll: Callable[[], int | None], folder: Path) -> None:
        self.pid, self.poll, self._folder = pid, poll, folder

    @property
    def output(self) -> str:
        """What it has written to standard output so far."""
        return (self._folder / "stdout").read_text()

    @property
    def errors(self) -> str:
        """What it has written to standard error so far."""
        return (self._folder / "stderr").read_text()

    def wait(self, timeout: float = 120) -> int:
        """Return the exit status; that of a signal is negative. Raises AssertionError after so many seconds."""
        self.wait_until(lambda: self.poll() is not None, timeout)
        status = self.poll()
        assert status is not None
        return status

    def wait_until(self, happened: Callable[[], object], timeout: float = 120) -> None:
        """Wait for something that this command is to do. Raises AssertionError when it ends, or takes too long."""
        deadline = time.monotonic() + timeout
        while not happened():
            ended = self.poll()
            assert ended is None or happened(), f"status {ended}: {self.errors}"
            assert time.monotonic() < deadline, f"not after {timeout} s: {self.errors}"
            time.sleep(0.002)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process, not to its children."""
        os.kill(self.pid, number)

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *error: object) -> None:
        if self.poll() is None:
            for pid in (self.pid, *descendants(self.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # those that its death has made orphans
        while self.poll() is None:
            time.sleep(0.002)
        shutil.rmtree(self._folder)


def children(pid: int) -> list[int]:
    """Process ids of a process's children, the oldest first."""
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it ended meanwhile
        return []
    return [int(child) for text in lists for child in text.split()]


def descendants(pid: int) -> list[int]:
    """Process ids of a process's children, their children, and so on."""
    return [found for child in children(pid) for found in (child, *descendants(child))]


def start(module: str, *arguments: str) -> Command:
    """Start `python -m module arguments`, from a fork."""
    return _fork(module, arguments, os.environ, threads=None)


def start_torchrun(module: str, *arguments: str, processes: int = 2, restarts: int = 0) -> Command:
    """Start torchrun and so many processes of `python -m module arguments`, all of them from forks."""
    options = [*_torchrun_options(processes, restarts), "--start-method=fork", "--run-path"]
    script = Path(*module.split(".")).with_suffix(".py")
    path = next(path for folder in sys.path if (path := Path(folder, script)).exists())
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return _fork("torch.distributed.run", [*options, str(path), *arguments], environment, threads=1)


def start_anew(module: str, *arguments: str) -> Command:
    """Start `python -m module arguments`."""
    return _spawn(["-m", module, *arguments], os.environ)


def start_torchrun_anew(module: str, *arguments: str, processes: int = 2, restarts: int = 0) -> Command:
    """Start torchrun and so many processes of `python -m module arguments`."""
    options = _torchrun_options(processes, restarts)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return _spawn(["-m", "torch.distributed.run", *options, "-m", module, *arguments], environment)


def _torchrun_options(processes: int, restarts: int) -> list[str]:
    return ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]


def _python_path() -> str:
    return os.pathsep.join(path for path in sys.path if path)


def _spawn(arguments: list[str], environment: Mapping[str, str]) -> Command:
    folder = Path(tempfile.mkdtemp())
    with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**environment, "PYTHONPATH": _python_path()},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            start_new_session=True,
        )
    return Command(process.pid, process.poll, folder)


def _fork(module: str, arguments: Sequence[str], environment: Mapping[str, str], threads: int | None) -> Command:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", _python_path())
        forkserver.ensure_running()
    folder = Path(tempfile.mkdtemp())
    for name in ("stdout", "stderr"):
        (folder / name).touch()
    process = context.Process(target=_work, args=(module, list(arguments), dict(environment), threads, folder))
    process.start()
    assert process.pid is not None
    return Command(process.pid, lambda: process.exitcode, folder)


def _work(module: str, arguments: list[str], environment: dict[str, str], threads: int | None, folder: Path) -> None:
    """The life of a forked process."""
    gc.freeze()  # what it has imported stays
    os.setsid()
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    missing = [name for name in PRELOADED if name not in sys.modules]
    assert not missing, f"could not be imported: {missing}"
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # the default, which this process has not inherited
    if threads is not None:  # OpenMP has read its variable
        import_module("torch").set_num_threads(threads)
    sys.argv = [module, *arguments]
    sys.exit(import_module(module).main(arguments))
