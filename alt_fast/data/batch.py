"""What goes through a loader: requests for clips, clips under way, batches, and the backends that make them."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from alt_fast.data.dataset import Clips, Key
from alt_fast.data.decode import VideoError
from alt_fast.data.workers import LostError, Workers


class Failure(NamedTuple):
    """An unreadable video."""

    path: str
    cause: str


def kinds(failures: Iterable[Failure]) -> dict[str, int]:
    """How many failures there are of each kind, most frequent first: of causes, what comes before the particulars."""
    return dict(Counter(re.split("[:(]", failure.cause)[0].strip() for failure in failures).most_common())


class Batch(NamedTuple):
    """video [B, T, 3, H, W] normalised and label [B] int64, both on the device; unreadable videos met on the way."""

    video: Tensor
    label: Tensor
    failures: list[Failure]


class Request(NamedTuple):
    """A clip to read: its key, the index of its video (None for a clip of zeros), and whether by PyAV only."""

    key: Key
    video: int | None
    plain: bool = False


class PendingClip:
    """A clip under way, asked for from its first candidate on.

    A video that cannot be decoded, hangs or kills its process is a failure, and the next candidate's turn comes. lost:
    videos that hung or killed, too dear to try again; shared by all clips.
    """

    def __init__(self, key: Key, clips: Clips, pool: Workers, lost: dict[int, str]) -> None:
        self.failures: list[Failure] = []
        self._key, self._clips, self._pool, self._lost = key, clips, pool, lost
        self._candidates = clips.candidates(key)
        self._ask()

    def _ask(self) -> None:
        """Start reading the next candidate, or zeros when none is left."""
        for index in self._candidates:
            if index not in self._lost:
                self._submit(Request(self._key, index))
                return
            self._fail(index, self._lost[index])
        self._submit(Request(self._key, None))

    def _submit(self, request: Request) -> None:
        self._request, self._future = request, self._pool.submit(request)

    def _fail(self, index: int | None, cause: str) -> None:
        assert index is not None, cause  # zeros cannot fail
        self.failures.append(Failure(str(self._clips.videos[index].path), cause))

    def item(self) -> Any:
        """Wait for what the reader returns."""
        while True:
            try:
                return self._future.result()
            except VideoError as e:
                self._fail(self._request.video, e.cause)
            except LostError as e:
                self._fail(self._request.video, str(e))
                self._lost[self._request.video] = str(e)  # type: ignore[index]
            self._ask()

    def ask_for_plain(self) -> None:
        """Read it again, from the same video, by PyAV."""
        self._submit(self._request._replace(plain=True))

    @property
    def label(self) -> int:
        """The class; known once the item is."""
        video = self._request.video
        return self._clips.label_without_video(self._key) if video is None else self._clips.videos[video].label


class Backend(Protocol):
    """Turns what processes read into batches. counts: clips by the way they took."""

    counts: Counter[str]

    def reader(self) -> Callable[[Request], Any]:
        """Reads one clip in a process; picklable. Raises VideoError."""
        ...

    def batches(self, pending: Iterable[list[PendingClip]]) -> Iterator[Batch]:
        """The batches, in order."""
        ...
