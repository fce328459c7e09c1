"""Texts that describe classes, for the text tower to read behind their names: CSV with columns name,text."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from alt_fast.data.annotations import name_key
from alt_fast.data.tables import AnnotationError, read_table, read_text
from alt_fast.files import write_csv


def write_texts(path: Path, texts: Mapping[str, str]) -> None:
    """Write texts by class name, for `read_texts`. Raises FileError."""
    write_csv(path, ("name", "text"), texts.items())


def read_texts(path: str | Path) -> list[tuple[str, str]]:
    """Return class names with their texts. Raises AnnotationError for a file that is none, and for empty cells."""
    path = Path(path)
    return [(row["name"], row["text"]) for _, row in read_table(path, read_text(path), ("name", "text"))]


def texts_by_class(texts: Iterable[tuple[str, str]], labels: Sequence[str], source: str) -> dict[str, str]:
    """Return texts by the `name_key` of their class, without those that say no more than its name.

    labels: the classes there are, each of which may have one. source: who gives the texts. Raises AnnotationError for
    an empty text, for a class that has two, and for one that is not there.
    """
    known = {name_key(label) for label in labels}
    found: dict[str, str] = {}
    for name, text in texts:
        key = name_key(name)
        if not text.strip():
            raise AnnotationError(f"{source}: the text of class {name!r} is empty")
        if key in found:
            raise AnnotationError(f"{source}: class {name!r} has two texts")
        if key not in known:
            raise AnnotationError(f"{source}: class {name!r} is not among the {len(known)} classes")
        found[key] = text
    return {key: text for key, text in found.items() if name_key(text) != key}
