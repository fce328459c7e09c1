"""How far long work is: a bar in a terminal, elsewhere a line every half minute, with the time left."""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from tqdm import tqdm

T = TypeVar("T")


class _Nowhere:
    """A file for a bar that only counts."""

    def write(self, text: str) -> None:
        pass

    def flush(self) -> None:
        pass


LINE_EVERY = 30.0  # seconds


class Progress(Generic[T]):
    """Iterates over `items` and shows how many are done, on standard error.

    name: what is under way. unit: of the items. total: how many there are; by default their length. initial: how many
    were done before. shown: false shows nothing, for all but one of several processes. size: how many units an item is.
    """

    def __init__(
        self,
        items: Iterable[T],
        name: str,
        unit: str,
        total: int | None = None,
        initial: int = 0,
        shown: bool = True,
        size: Callable[[T], int] = lambda item: 1,
    ) -> None:
        self.items, self.size = items, size
        self.lines = shown and not sys.stderr.isatty()
        options: dict[str, Any] = {"initial": initial, "unit": unit, "disable": not shown}
        if self.lines:  # it only counts, every item
            options |= {"file": _Nowhere(), "mininterval": 0, "miniters": 1}
        self.bar: tqdm[T] = tqdm(items, name, total, **options)

    def __iter__(self) -> Iterator[T]:
        done = threading.Event()
        if self.lines:
            threading.Thread(target=self._print_lines, args=(done,), daemon=True).start()
        try:
            with self.bar:
                for item in self.items:
                    yield item
                    self.bar.update(self.size(item))
        finally:
            done.set()

    def annotate(self, note: str) -> None:
        """Show a short text, such as the loss, behind the numbers."""
        self.bar.set_postfix_str(note, refresh=False)

    def write(self, message: str) -> None:
        """Print a line without breaking the bar."""
        tqdm.write(message, file=sys.stderr)

    def _print_lines(self, done: threading.Event) -> None:
        while not done.wait(LINE_EVERY):
            print(self.bar, file=sys.stderr, flush=True)


def print_line(message: str) -> None:
    """Print a line for the person who watches."""
    print(message, flush=True)


def print_aside(message: str) -> None:
    """Print a line for the person who watches that is no part of a command's output, on standard error."""
    print(message, file=sys.stderr, flush=True)


def say_nothing(message: str) -> None:
    """What processes other than the main one print."""
