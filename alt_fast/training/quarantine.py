"""The videos of a run that could not be used, in its folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from alt_fast.data.batch import Failure
from alt_fast.errors import RunError
from alt_fast.files import read_json_lines, write_text
from alt_fast.progress import print_line

TOLD = 20  # videos that are named as they come


def most_bad(share: float, videos: int) -> float:
    """Return how many of so many training videos may be bad: that share, and one in any case unless the share is 0."""
    return max(share * videos, 1) if share else 0


class Quarantine:
    """The videos that could not be used, in a file of one JSON object a line.

    Those of earlier runs are in it, and count again once they are met again: a file may have been mended since.
    """

    def __init__(self, path: Path, num_videos: int, max_share: float, writes: bool = True) -> None:
        """writes: whether this process writes the file; all processes of a job have the same causes.

        Raises FileError.
        """
        self.path, self.num_videos, self.max_share, self.writes = path, num_videos, max_share, writes
        entries = read_json_lines(path, "path", "cause") if path.exists() else []
        self.causes: dict[str, str] = {entry["path"]: entry["cause"] for entry in entries}
        self.met: set[str] = set()

    def add(self, failures: Sequence[Failure]) -> None:
        """Record videos not seen before. Raises RunError past the allowed share."""
        for path, cause in failures:
            self.met.add(path)
            if path not in self.causes:
                self.causes[path] = cause
                if self.writes:
                    self._write()
                    self._tell(path, cause)
        if len(self.met) > most_bad(self.max_share, self.num_videos):
            raise RunError(
                f"{len(self.met)} of {self.num_videos} training videos cannot be used, more than "
                f"data.max_bad_share {self.max_share} allows; they are among those listed in {self.path}. Where videos "
                "are not there, data.missing skip leaves them out"
            )

    def _tell(self, path: str, cause: str) -> None:
        if len(self.causes) <= TOLD:
            print_line(f"quarantined {path}: {cause}")
        elif len(self.causes) == TOLD + 1:
            print_line(f"more than {TOLD} videos are quarantined: the others are listed in {self.path}")

    def _write(self) -> None:
        entries = ({"path": path, "cause": cause} for path, cause in self.causes.items())
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in entries))
