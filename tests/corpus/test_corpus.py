"""The corpus file."""

import json
from pathlib import Path

import pytest

from alt_fast.corpus import CATEGORIES, Corpus, CorpusError, Entity
from alt_fast.errors import FileError
from alt_fast.training.config import parse
from alt_fast.training.run import load_corpus


def test_round_trip(corpus: Corpus, tmp_path: Path) -> None:
    corpus.save(tmp_path / "corpus.json")
    assert Corpus.load(tmp_path / "corpus.json") == corpus
    lines = (tmp_path / "corpus.json").read_text().splitlines()
    assert sum("unit" in line for line in lines) == len(corpus)  # an entity a line: diffable


def test_a_place_that_cannot_be_written(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot write .*none"):
        corpus.save(tmp_path / "none" / "corpus.json")


def test_select_keeps_order_and_categories(corpus: Corpus) -> None:
    assert [entity.unit for entity in corpus.select(["motion", "object"]).entities] == ["star", "moon", "growing"]
    assert corpus.select(None) is corpus
    with pytest.raises(CorpusError, match="unknown corpus category colour"):
        corpus.select(["colour"])
    with pytest.raises(CorpusError, match="categories of a corpus must be at least one, or None for all"):
        corpus.select([])
    with pytest.raises(CorpusError, match="no entity of category body"):
        Corpus(corpus.entities[:1]).select(["body"])


def test_packaged_corpus_has_every_category() -> None:
    corpus = load_corpus(parse([]))
    assert corpus is not None
    assert {entity.category for entity in corpus.entities} == set(CATEGORIES)
    assert len({entity.text for entity in corpus.entities}) == len(corpus)


ENTRY = {"unit": "a", "description": "x", "category": "body"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "cannot read"),
        (json.dumps([1]), "not a corpus of version 1"),
        (json.dumps({"version": 2, "entities": [1]}), "not a corpus of version 1"),
        (json.dumps({"version": 1, "entities": []}), "no entities"),
        (json.dumps({"version": 1, "entities": [3]}), "entity 1: expected an object"),
        (json.dumps({"version": 1, "entities": [{"unit": "", "description": "x", "category": "body"}]}), "'unit'"),
        (json.dumps({"version": 1, "entities": [{"unit": "a", "description": "x", "category": "y"}]}), "category 'y'"),
        (
            json.dumps({"version": 1, "entities": [ENTRY, ENTRY | {"sources": "me"}]}),
            "entity 2: 'sources' must be a list",
        ),
        (json.dumps({"version": 1, "entities": [ENTRY | {"sources": 5}]}), "entity 1: 'sources' must be a list of str"),
        (json.dumps({"version": 1, "entities": [ENTRY | {"sources": [5]}]}), "entity 1: 'sources' must be a list of"),
        (json.dumps({"version": 1, "labels": 7, "entities": [ENTRY]}), "'labels' must be a list of strings"),
        (json.dumps({"version": 1, "labels": [7], "entities": [ENTRY]}), "'labels' must be a list of strings"),
        (json.dumps({"version": 1, "choices": None, "entities": [ENTRY]}), "'choices' must be a list of objects"),
        (json.dumps({"version": 1, "made_with": [], "entities": [ENTRY]}), "'made_with' must be an object"),
        (
            json.dumps({"version": 1, "made_with": {"reach": "1"}, "entities": [ENTRY]}),
            "and its 'reach' a whole number",
        ),
    ],
)
def test_bad_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(CorpusError, match=message) as caught:
        Corpus.load(tmp_path / "bad.json")
    assert "bad.json" in str(caught.value)


def test_sources_may_be_missing(tmp_path: Path) -> None:
    entries = [ENTRY, ENTRY | {"sources": None}, ENTRY | {"sources": ["me"]}]
    (tmp_path / "mine.json").write_text(json.dumps({"version": 1, "entities": entries}))
    assert [entity.sources for entity in Corpus.load(tmp_path / "mine.json").entities] == [[], [], ["me"]]


def test_names_tell_the_senses_of_a_unit_apart() -> None:
    entities = [
        Entity("bow", "it shoots", "object"),
        Entity("arm", "a limb", "body"),
        Entity("bow", "a knot", "object"),
    ]
    corpus = Corpus(tuple(entities))
    assert corpus.names == ["bow: it shoots", "arm", "bow: a knot"]
    assert corpus.select(["body"]).names == ["arm"]
    assert Corpus(corpus.entities[1:]).names == ["arm", "bow"]
