"""Calls that crash or hang are lost alone."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alt_fast.data.workers import LostError, Workers
from alt_fast.errors import ArgumentError


def work(task: tuple[str, object]) -> object:
    """What a process is asked to do."""
    what, value = task
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "die once":  # the file says whether it did
        if not Path(str(value)).exists():
            Path(str(value)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "alive"
    if what == "hang":
        time.sleep(1000)
    if what == "make bytes":
        return bytes(int(str(value)))
    if what == "raise":
        raise ValueError(value)
    return value


@pytest.mark.parametrize("count", [0, 1, 3])
def test_results_and_exceptions_come_back(count: int) -> None:
    with Workers(work, count, 60) as workers:
        results = [workers.submit(("return", i)) for i in range(50)]
        failing = workers.submit(("raise", "no"))
        assert [result.result() for result in results] == list(range(50))
        with pytest.raises(ValueError, match="no") as caught:
            failing.result()
        assert "in work" in caught.value.__notes__[0]


@pytest.mark.parametrize("timeout", [math.inf, 1e9])
def test_calls_may_take_for_ever(timeout: float) -> None:
    with Workers(work, 1, timeout) as workers:
        assert workers.submit(("return", 1)).result(30) == 1


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_times_that_no_call_can_take(timeout: float) -> None:
    with pytest.raises(ArgumentError, match="timeout > 0"):
        Workers(work, 1, timeout)


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [("die", "its process died twice, the last time with status -9"), ("hang", "took more than 2 s")],
)
def test_only_the_culprit_is_lost(trouble: str, cause: str) -> None:
    with Workers(work, 2, 2) as workers:
        tasks: list[tuple[str, int | None]] = [("return", i) for i in range(8)]
        tasks[2:2] = tasks[5:5] = [(trouble, None)]
        results = [workers.submit(task) for task in tasks]
        for task, result in zip(tasks, results, strict=True):
            if task[0] == trouble:
                with pytest.raises(LostError, match=cause):
                    result.result(30)
            else:
                assert result.result(30) == task[1]


def test_a_process_that_was_killed_by_others_costs_nothing(tmp_path: Path) -> None:
    with Workers(work, 1, 60) as workers:
        assert workers.submit(("die once", str(tmp_path / "died"))).result(30) == "alive"


def test_large_results_pass() -> None:
    with Workers(work, 2, 60) as workers:
        results = [workers.submit(("make bytes", 4_000_000)) for _ in range(20)]
        assert all(len(result.result(60)) == 4_000_000 for result in results)


def test_leaving_ends_the_processes_and_whoever_waits() -> None:
    with Workers(work, 2, 60) as workers:
        running = workers.submit(("hang", None))
        time.sleep(0.2)
    with pytest.raises(LostError, match="stopped"):
        running.result(5)
    assert not multiprocessing.active_children()
    with pytest.raises(RuntimeError, match="not running"):
        workers.submit(("return", 1))


def test_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = f"""
import os, sys, time
sys.path[:0] = {sys.path!r}
from tests.data.test_workers import work
from alt_fast.data import workers
workers._LOOK_AROUND = 0.1
with workers.Workers(work, 2, 60) as pool:
    pool.submit(("return", 1)).result()
    print(*[worker.process.pid for worker in pool._workers], flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    children = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.wait()
    assert len(children) == 2
    deadline = time.monotonic() + 120  # one of them may still import what it needs, before it can look around
    while any(_runs(pid) for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="workers must be >= 0"):
        Workers(work, -1, 60)
    with pytest.raises(ValueError, match="timeout > 0"):
        Workers(work, 1, 0)
