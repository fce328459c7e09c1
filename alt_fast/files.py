"""Files that appear whole or not at all, their names in a run folder, and who may write there."""

import csv
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from alt_fast.errors import FileError, RunError

CONFIG, ENVIRONMENT, METRICS, LOG = "config.yaml", "environment.json", "metrics.json", "log.jsonl"
WEIGHTS, CLIP, CLASSES, CARD = "model.safetensors", "clip.safetensors", "classes.csv", "README.md"
LISTS, MISSING = {name: f"{name}.csv" for name in ("train", "test", "unseen")}, "missing.jsonl"
QUARANTINE, BEST, BEST_RECORD = "quarantine.jsonl", "best.safetensors", "best.json"
"""What a run folder holds; the lists, where the run made them."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary name beside `path`, flush to disk, then rename.

    Readers, and other writers of the same file, see it whole. What a link points to is written; pipes and character
    devices are written into. Raises FileError when the disk is full or the like, or a text is no UTF-8; what was at
    `path` before is there still.
    """
    if not path.name:
        raise FileError(f"cannot write {path}: it is a folder")
    try:
        if _takes_bytes(path):
            with tempfile.TemporaryDirectory() as folder:
                whole = Path(folder) / path.name
                write(whole)
                with whole.open("rb") as file, path.open("wb") as stream:
                    shutil.copyfileobj(file, stream)
        else:
            _replace(Path(os.path.realpath(path)), write)
    except BaseException as e:
        full = "PytorchStreamWriter" in str(e)  # torch.save on a full disk
        if full or isinstance(e, OSError | SafetensorError | UnicodeEncodeError):
            raise FileError(f"cannot write {path}: {e}") from e
        raise  # a bug of `write`, or Ctrl-C


def _takes_bytes(path: Path) -> bool:
    """Whether a pipe or a character device is there. Raises FileError for folders, sockets and the like."""
    if not path.exists() or path.is_file():
        return False
    if path.is_fifo() or path.is_char_device():
        return True
    raise FileError(f"cannot write {path}: it is {'a folder' if path.is_dir() else 'no file'}")


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}.partial{path.suffix}")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # safetensors makes files that only their owner can read
        write(partial)
        partial.chmod(mode)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write text, atomically. Raises FileError."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON, atomically. Raises FileError."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table with commas, quotes and line ends in its cells as they are, atomically. Raises FileError.

    A cell that would be taken for a comment (#) is quoted too.
    """

    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8", newline="") as file:
            plain = csv.writer(file, lineterminator="\n")
            quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
            plain.writerow(header)
            for row in rows:
                cells = [str(cell) for cell in row]
                (quoted if cells[0].startswith("#") or "\r" in "".join(cells) else plain).writerow(cells)

    write_atomically(path, write)


def check_not_others(tables: Mapping[Path, Iterable[Sequence[Any]]], header: Sequence[str]) -> None:
    """Raise FileError for files in the place of tables that are to be written, unless they are just those.

    tables: rows by path.
    """
    others = []
    for path, rows in tables.items():
        if path.exists():
            with tempfile.TemporaryDirectory() as folder:
                write_csv(Path(folder) / "table.csv", header, rows)
                table = (Path(folder) / "table.csv").read_bytes()
            if _parsed(path, lambda text: text).encode() != table:
                others.append(str(path))
    if others:
        raise FileError(f"there is another {' and another '.join(others)}: remove it, or choose another folder")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Read an object that has these keys. Raises FileError for what cannot be read or is none."""
    return _checked(path, _parsed(path, json.loads), keys)


def read_yaml(path: Path, *keys: str) -> dict[str, Any]:
    """Read a mapping that has these keys. Raises FileError for what cannot be read or is none."""
    import yaml  # an extra, and not every command's

    def parse(text: str) -> Any:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as e:
            raise ValueError(str(e).replace("\n", " ")) from e

    return _checked(path, _parsed(path, parse), keys)


def read_json_lines(path: Path, *keys: str) -> list[dict[str, Any]]:
    """Read objects that have these keys, one a line. Raises FileError for what cannot be read or is none."""
    entries = _parsed(path, lambda text: [json.loads(line) for line in text.splitlines()])
    return [_checked(path, entry, keys) for entry in entries]


def _parsed(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise FileError(f"cannot read {path}: {e}") from e


def _checked(path: Path, content: Any, keys: Sequence[str]) -> dict[str, Any]:
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing or not isinstance(content, dict):
        raise FileError(f"cannot read {path}: it is not what alt-fast wrote (no {missing[0] if missing else 'object'})")
    return content


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless it is there. Raises FileError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise FileError(f"cannot make folder {path}: {e.strerror or e}") from e


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill, beside `path`, whose name it takes when it is full; where filling it fails it goes.

    path: no folder yet, or an empty one, which may be a mount point or all that can be written to: the folder to fill
    lies inside then, and what it holds moves up. Raises FileError.
    """
    path = path.resolve()
    there = path.is_dir()
    partial = (path if there else path.parent) / f".{path.name}.{os.getpid()}.partial"
    make_folder(partial)
    try:
        yield partial
        try:
            if there:
                _move_up(partial)
            else:
                os.replace(partial, path)
        except OSError as e:
            raise FileError(f"cannot make folder {path}: {e.strerror or e}") from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_up(folder: Path) -> None:
    """Move what a folder holds to the one above, which holds nothing else, all or nothing. Raises OSError."""
    if any(path != folder for path in folder.parent.iterdir()):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
    moved = []
    try:
        for path in sorted(folder.iterdir()):
            moved.append(path)
            os.replace(path, folder.parent / path.name)
    except BaseException:
        for path in moved:
            if not path.exists():
                os.replace(folder.parent / path.name, path)
        raise


def check_place(path: Path) -> None:
    """Make the folder of a file that is to be written after long work, and see that it takes one. Raises FileError."""
    make_folder(path.parent)
    try:
        if not _takes_bytes(path):
            with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
                pass
    except OSError as e:
        raise FileError(f"cannot write {path}: {e.strerror or e}") from e


def cache_folder(name: str) -> Path:
    """`name` in alt-fast's folder under $XDG_CACHE_HOME, by default ~/.cache, for files that can be made again.

    It need not exist yet.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alt_fast" / name


def text_of(names: Sequence[str]) -> str:
    """Return a short text that stands for these names and no others."""
    digest = hashlib.sha256(os.fsencode("\0".join(names))).hexdigest()
    return f"{len(names)} ({digest[:16]})"


def differences(before: Any, now: Any, key: str = "") -> list[str]:
    """Return the settings that changed, as text, by their dotted names."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted(before.keys() | now.keys())
        return [d for name in names for d in differences(before.get(name), now.get(name), f"{key}.{name}".strip("."))]
    return [] if before == now else [f"{key} was {before!r}, now {now!r}"]


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Be the only process that writes to `folder`. Raises RunError when another one is.

    The lock ends with its process, however that ends. It is one that forked children do not inherit (lockf, not flock):
    decoding processes outlive a killed parent for some seconds.
    """
    try:
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as e:
        raise FileError(f"cannot write to {folder}: {e}") from e
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno not in (errno.EACCES, errno.EAGAIN):  # a file system without locks
                raise FileError(f"cannot lock {folder}: {e}") from e
            file.seek(0)
            raise RunError(f"{folder} is being written by {file.read().strip() or 'another process'}") from e
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        for left in folder.glob(".*.partial*"):  # by a process that was killed
            if left.is_file():
                left.unlink()
        yield
