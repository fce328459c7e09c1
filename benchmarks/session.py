"""What the benchmarks of one session share: the rows they measure, and models that are built and compiled once."""

import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from alt_fast.measure.provenance import provenance

T = TypeVar("T")
Row = dict[str, Any]

CUT = "cut: --full runs it"
"""Why a quick run skipped a contestant, in its row."""

EVERYONE = "everyone"
"""The contestant in the row of a race that was cut whole."""


@dataclass
class Results:
    """Rows in the order they were measured. path: a file that gets each as it comes, behind a line of provenance.

    So a run that is stopped leaves what it measured.
    """

    path: Path | None = None
    rows: list[Row] = field(default_factory=list)

    def add(self, *rows: Row) -> None:
        """Keep rows, and write them. The first of a session replace what the file held."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = rows if self.rows else ({"provenance": provenance()}, *rows)
            with self.path.open("a" if self.rows else "w") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
        self.rows += rows


class Once:
    """What several races run, made for the first of them and kept for the others: compiling is most of a run."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def __call__(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned when it was first asked for by this key."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made
