"""What is said of many videos, in one file: an interrupted command goes on, and several processes share the work.

Until all is said, it stands in a folder beside the file, FILE.partial: a file for each process of each attempt, with a
line for each share of the videos. Nobody changes what another one wrote, and a line that was cut off counts as not
there, so that a kill at any moment costs the shares under way and no others.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from alt_fast.data.batch import Failure
from alt_fast.distributed import World
from alt_fast.errors import ArgumentError, FileError, RunError
from alt_fast.files import write_atomically, write_csv
from alt_fast.inference.features import open_folder
from alt_fast.inference.predict import Prediction
from alt_fast.progress import Progress

Found = Prediction | Failure

_COLUMNS = ("label", "probability")


class _Place(NamedTuple):
    """Where the line of a share begins, in bytes, and how many of its videos could not be read."""

    path: Path
    offset: int
    failed: int


def check_path(path: Path) -> None:
    """Raise ArgumentError for a file of another kind, RunError for one that is there and not under way."""
    if path.suffix not in (".csv", ".jsonl"):
        raise ArgumentError(f"--out must end in .csv or .jsonl, got {path}")
    if path.exists() and not _folder(path).exists():
        raise RunError(f"{path} is there already: remove it, or choose another --out")


def write_results(
    path: Path,
    top_k: int,
    settings: dict[str, Any],
    shares: Sequence[range],
    predict: Callable[[Sequence[range]], Iterable[list[Found]]],
    world: World,
) -> int:
    """Write what `predict` finds in these shares of the videos, in order, to `path`; returns how many are failures.

    A .csv has the columns video, error, label, probability, label_2, probability_2 and so on for `top_k` labels; a
    .jsonl has `Prediction.as_dict`, or {"video", "error"}. settings: all that rows depend on, as JSON has it. world:
    each of its processes takes whole shares in turn; all but the first return 0. Memory grows with the number of
    shares, not with what is said.

    Raises RunError for other settings than `path` was begun with, and while another command is writing it; FileError
    for a full disk or the like.
    """
    folder = _folder(path)
    with open_folder(folder, settings) if world.main else nullcontext():
        done, attempt = world.gather(_look(folder) if world.main else ({}, 0))[0]
        missing = [number for number in range(len(shares)) if number not in done][world.rank :: world.size]
        if missing:
            own = folder / f"{attempt + world.rank:05}.jsonl"
            videos = [sum(len(shares[number]) for number in numbers) for numbers in (done, missing)]
            found = zip(missing, predict([shares[number] for number in missing]), strict=True)
            bar = Progress(found, "classify", "video", sum(videos), videos[0], world.main, lambda item: len(item[1]))
            for number, share in bar:
                _append(own, number, share, path.suffix)
        world.gather(None)  # all have written
        if not world.main:
            return 0
        places, _ = _look(folder)
        _write_whole(path, top_k, _rows([places[number] for number in range(len(shares))]))
    shutil.rmtree(folder, ignore_errors=True)  # what stays does no harm
    return sum(place.failed for place in places.values())


def _folder(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _append(path: Path, number: int, share: Sequence[Found], suffix: str) -> None:
    failed = sum(isinstance(found, Failure) for found in share)
    rows = [(_cells if suffix == ".csv" else _object)(found) for found in share]
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"share": number, "failed": failed, "rows": rows}) + "\n")
    except OSError as e:
        raise FileError(f"cannot write {path}: {e}") from e


def _cells(found: Found) -> list[Any]:
    if isinstance(found, Failure):
        return [_printable(found.path), found.cause]
    return [_printable(found.video), "", *chain.from_iterable(found)]


def _object(found: Found) -> dict[str, Any]:
    if isinstance(found, Failure):
        return {"video": _printable(found.path), "error": found.cause}
    return found.as_dict() | {"video": _printable(found.video)}


def _printable(path: str) -> str:
    """Return a path as UTF-8 can hold it, which names of files need not be: other bytes as \\x and two digits."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _look(folder: Path) -> tuple[dict[int, _Place], int]:
    """Return where each share is that was written, and the number of the next attempt's first file.

    Raises FileError.
    """
    places: dict[int, _Place] = {}
    paths = sorted(folder.glob("*.jsonl"))
    for path in paths:
        try:
            with path.open("rb") as file:
                offset = 0
                for line in file:
                    if line.endswith(b"\n"):  # the last one may have been cut off
                        content = json.loads(line)
                        places[content["share"]] = _Place(path, offset, content["failed"])
                    offset += len(line)
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise FileError(f"cannot read {path}: {e!r}; without it, the same command makes it anew") from e
    return places, int(paths[-1].stem) + 1 if paths else 0


def _rows(places: Sequence[_Place]) -> Iterator[Any]:
    """Read shares one at a time."""
    with ExitStack() as stack:
        paths = {place.path for place in places}
        files = {path: stack.enter_context(path.open("rb")) for path in paths}
        for place in places:
            files[place.path].seek(place.offset)
            yield from json.loads(files[place.path].readline())["rows"]


def _write_whole(path: Path, top_k: int, rows: Iterator[Any]) -> None:
    if path.suffix == ".csv":
        columns = [name + end for end in ("", *(f"_{k}" for k in range(2, top_k + 1))) for name in _COLUMNS]
        width = 2 + len(columns)
        write_csv(path, ("video", "error", *columns), ([*row, *[""] * (width - len(row))] for row in rows))
        return

    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    write_atomically(path, write)
