"""Texts that describe classes: their file, and which class each is of."""

from pathlib import Path

import pytest

from alt_fast.data.tables import AnnotationError
from alt_fast.data.texts import read_texts, texts_by_class, write_texts

LABELS = ["brush hair", "Surf!"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    texts = {"brush hair": 'brush hair: a person, with a "brush"', "#1": "#1: the first\nof all"}
    write_texts(tmp_path / "texts.csv", texts)
    assert dict(read_texts(tmp_path / "texts.csv")) == texts


def test_classes_are_found_whatever_case_and_punctuation() -> None:
    """A text that says no more than the name is none."""
    assert texts_by_class([("BrushHair", "with a brush")], LABELS, "texts") == {"brushhair": "with a brush"}
    assert texts_by_class([("brush hair", "Brush hair."), ("surf", "on a wave")], LABELS, "texts") == {
        "surf": "on a wave"
    }


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([("hair", "x")], "mine.csv: class 'hair' is not among the 2 classes"),
        ([("surf", " ")], "mine.csv: the text of class 'surf' is empty"),
        ([("surf", "x"), ("Surf!", "y")], "mine.csv: class 'Surf!' has two texts"),
    ],
)
def test_texts_that_are_refused(texts: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        texts_by_class(texts, LABELS, "mine.csv")


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("name,text\nsurf,\n")
    with pytest.raises(AnnotationError, match=r"texts.csv, line 2: name, text must not be empty"):
        read_texts(path)
    path.write_text("name,description\nsurf,x\n")
    with pytest.raises(AnnotationError, match=r"texts.csv: column 'text' is missing"):
        read_texts(path)
    with pytest.raises(AnnotationError, match=r"cannot read .*none.csv"):
        read_texts(tmp_path / "none.csv")
