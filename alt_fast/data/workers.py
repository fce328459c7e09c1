"""Processes for calls that may crash or hang: such a call is reported as lost, its process replaced, the rest goes on.

The standard library's pools and PyTorch's DataLoader break when a process dies, and cannot stop one that hangs.
"""

import gc
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import Any

import torch

from alt_fast.errors import AltFastError, ArgumentError

_LONGEST_WAIT = 3600.0  # seconds: of the system's calls none takes more than weeks
_LOOK_AROUND = 5.0  # seconds between an idle process's looks whether its parent lives
_AHEAD = 2  # calls that a process holds, so that it never waits for the next


class LostError(AltFastError, RuntimeError):
    """The process of a call died, or the call took too long."""


class Workers:
    """`count` processes that call `function` with one argument; 0 calls it in this process, with no protection.

    timeout: seconds that a call may take; math.inf for any. A call whose process died is tried a second time: the
    process may have been killed for another reason. To be used as a context manager; leaving it ends the processes.
    """

    def __init__(self, function: Callable[[Any], Any], count: int, timeout: float) -> None:
        if count < 0 or not timeout > 0:
            raise ArgumentError(f"workers must be >= 0 and timeout > 0, got {count} and {timeout}")
        self._function, self._count, self._timeout = function, count, timeout
        self._queue: deque[_Call] = deque()
        self._workers: list[_Worker] = []
        self._wake_up, self._woken = multiprocessing.Pipe()
        self._closed = False
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Workers":
        self._workers = [_Worker(self._function) for _ in range(self._count)]
        if self._count:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed = True
        if self._count:
            self._wake_up.send_bytes(b"")
            self._thread.join()
        self._wake_up.close()
        self._woken.close()

    def submit(self, argument: Any) -> "Future[Any]":
        """The result to come: what the call returns or raises, or LostError. argument: some kilobytes at most."""
        call = _Call(argument)
        if not self._count:
            call.settle(_attempt(self._function, argument))
        elif self._thread.is_alive():
            self._queue.append(call)
            self._wake_up.send_bytes(b"")
        else:
            raise RuntimeError("the workers are not running")
        return call.future

    def _run(self) -> None:
        error: BaseException = LostError("the workers were stopped")
        try:
            while not self._closed:
                self._step()
        except BaseException as e:  # whoever waits for a result must hear of it
            error = e
        finally:
            for worker in self._workers:
                worker.end()
            for call in [*self._queue, *(call for worker in self._workers for call in worker.calls)]:
                call.settle((None, error))

    def _step(self) -> None:
        """Hand out calls, wait until something happens, and see to it."""
        workers = self._workers
        for held in range(_AHEAD):  # one for each first, then the ones to hold
            for worker in workers:
                if self._queue and len(worker.calls) == held:
                    worker.take(self._queue.popleft())
        started = [worker.since for worker in workers if worker.calls]
        left = min(started) + self._timeout - time.monotonic() if started else _LONGEST_WAIT
        patience = min(max(0.0, left), _LONGEST_WAIT)
        ready = wait([self._woken, *(worker.pipe for worker in workers)], patience)
        if self._woken in ready:
            self._woken.recv_bytes()
        for place, worker in enumerate(workers):
            if worker.pipe in ready:
                if not worker.receive():
                    workers[place] = self._replace(worker, late=False)
            elif worker.calls and time.monotonic() - worker.since > self._timeout and not worker.pipe.poll():
                workers[place] = self._replace(worker, late=True)

    def _replace(self, worker: "_Worker", late: bool) -> "_Worker":
        worker.end()
        if worker.calls:
            culprit = worker.calls.popleft()
            self._queue.extendleft(reversed(worker.calls))
            if late:
                culprit.settle((None, LostError(f"took more than {self._timeout:g} s")))
            elif culprit.died:
                status = worker.process.exitcode
                culprit.settle((None, LostError(f"its process died twice, the last time with status {status}")))
            else:
                culprit.died = True
                self._queue.appendleft(culprit)
        return _Worker(self._function)


class _Call:
    def __init__(self, argument: Any) -> None:
        self.argument, self.future, self.died = argument, Future[Any](), False

    def settle(self, outcome: tuple[Any, BaseException | None]) -> None:
        result, error = outcome
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class _Worker:
    """A process, the calls it holds in order, and since when it is at the first."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=_serve, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()
        self.calls: deque[_Call] = deque()
        self.since = 0.0

    def take(self, call: _Call) -> None:
        if not self.calls:
            self.since = time.monotonic()
        self.calls.append(call)
        with suppress(OSError):  # when it has died, receiving will tell
            self.pipe.send(call.argument)

    def receive(self) -> bool:
        """Settle the first call; False when the process is gone."""
        try:
            outcome = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            return False
        self.since = time.monotonic()
        self.calls.popleft().settle(outcome)
        return True

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """The life of a process."""
    gc.freeze()  # what the parent left is not for its copy to clean up: DALI's threads, for one, are not here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    torch.set_num_threads(1)
    parent = os.getppid()
    try:
        while os.getppid() == parent:  # the pipe alone does not tell: forked siblings hold its other end open
            if pipe.poll(_LOOK_AROUND):
                # Not pipe.send: PyTorch has it send tensors as handles, which die with this process.
                pipe.send_bytes(pickle.dumps(_attempt(function, pipe.recv()), pickle.HIGHEST_PROTOCOL))
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone


def _attempt(function: Callable[[Any], Any], argument: Any) -> tuple[Any, Exception | None]:
    try:
        return function(argument), None
    except Exception as e:
        e.add_note(traceback.format_exc())
        return None, e
