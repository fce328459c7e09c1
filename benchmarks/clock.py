"""A clock that nobody waits for."""

import threading


class SharedClock:
    """The time of two threads: it stands still while one works, and jumps to what comes first when both wait."""

    def __init__(self) -> None:
        self._time = 0.0
        self._threads: set[threading.Thread] = set()
        self._due: dict[threading.Thread, float] = {}
        self._moved = threading.Condition()

    def now(self) -> float:
        return self._time

    def wait(self, event: threading.Event, seconds: float) -> None:
        own = threading.current_thread()
        with self._moved:
            self._threads.add(own)
            self._due[own] = self._time + max(0.0, seconds)
            while self._time < self._due[own] and not event.is_set():
                ended = sum(not thread.is_alive() for thread in self._threads)
                if len(self._due) + ended == 2:
                    self._time = max(self._time, min(self._due.values()))
                    self._moved.notify_all()
                if self._time < self._due[own]:
                    self._moved.wait(0.01)
            del self._due[own]
