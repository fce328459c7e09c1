"""Counts and comparisons of corpora."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from alt_fast.corpus import CATEGORIES, Corpus

_RELATION = re.compile(r"(?:kind of|part of|named after|term of|in the gloss of) (\S+)")


@dataclass(frozen=True)
class Stats:
    """Counts of a corpus.

    categories: entities by category. labels: entities by label, its own and those that come from its own; labels
    without any have 0. repeated: entities beyond the first of each unit, in other senses. alike: pairs of entities of
    one unit whose descriptions share at least 80 % of their words.
    """

    entities: int
    categories: dict[str, int]
    labels: dict[str, int]
    repeated: int
    alike: list[tuple[str, str, str]]

    def share(self, least: int) -> float:
        """The share of labels that have at least so many entities."""
        return sum(number >= least for number in self.labels.values()) / len(self.labels)


def stats(corpus: Corpus) -> Stats:
    """Counts of a corpus."""
    by_category = Counter(entity.category for entity in corpus.entities)
    units = Counter(entity.unit for entity in corpus.entities)
    return Stats(
        entities=len(corpus),
        categories={category: by_category[category] for category in CATEGORIES},
        labels=entities_by_label(corpus),
        repeated=len(corpus) - len(units),
        alike=list(_alike(corpus)),
    )


def entities_by_label(corpus: Corpus) -> dict[str, int]:
    """How many entities each label brought: its own, and those that come from these in steps through WordNet.

    A corpus is followed as many steps as it was built with (`reach`).
    """
    own: dict[str, set[int]] = {label: set() for label in corpus.notes.get("labels", ())}
    derived: dict[str, set[int]] = {}
    senses: dict[int, list[str]] = {}
    for number, entity in enumerate(corpus.entities):
        for source in entity.sources:
            if source.startswith("label "):
                own.setdefault(source.removeprefix("label "), set()).add(number)
            elif source.startswith("sense "):
                senses.setdefault(number, []).append(source.removeprefix("sense "))
            elif relation := _RELATION.fullmatch(source):
                derived.setdefault(relation[1], set()).add(number)
    related = {
        number: set().union(*(derived.get(sense, ()) for sense in senses.get(number, ())))
        for number in range(len(corpus))
    }
    found = own
    for _ in range(max(corpus.notes.get("made_with", {}).get("reach", 1), 1)):  # glosses are one step of their own
        found = {label: numbers.union(*(related[number] for number in numbers)) for label, numbers in found.items()}
    return {label: len(numbers) for label, numbers in found.items()}


def diff(before: Corpus, after: Corpus) -> list[str]:
    """Lines of what was removed (-), added (+) and put into another category (~)."""
    old, new = ({(e.unit, e.description): e.category for e in corpus.entities} for corpus in (before, after))
    removed = [f"- {unit}: {description}" for unit, description in old if (unit, description) not in new]
    added = [f"+ {unit}: {description}" for unit, description in new if (unit, description) not in old]
    moved = [
        f"~ {unit}: {old[unit, description]} is now {category}"
        for (unit, description), category in new.items()
        if old.get((unit, description), category) != category
    ]
    return removed + added + moved


def _alike(corpus: Corpus) -> Iterator[tuple[str, str, str]]:
    descriptions: dict[str, list[str]] = {}
    for entity in corpus.entities:
        descriptions.setdefault(entity.unit, []).append(entity.description)
    for unit, texts in descriptions.items():
        words = [set(re.findall(r"\w+", text.lower())) for text in texts]
        for i, first in enumerate(words):
            for j in range(i):
                if len(first & words[j]) >= 0.8 * len(first | words[j]):
                    yield unit, texts[j], texts[i]
