"""From action labels to a corpus: units, senses, related concepts, categories (paper, section 3.1 and appendix A)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tqdm import tqdm

from alt_fast.corpus import Corpus, CorpusError, Entity
from alt_fast.corpus.senses import CHOOSERS, Choice, choose
from alt_fast.corpus.units import normalize_label, units_of
from alt_fast.corpus.wordnet import category_of

Synset = Any

BODY_PARTS = (
    *("head.n.01", "face.n.01", "forehead.n.01", "eye.n.01", "eyebrow.n.01", "ear.n.01", "nose.n.01", "cheek.n.01"),
    *("mouth.n.02", "lip.n.01", "tooth.n.01", "tongue.n.01", "chin.n.01", "neck.n.01", "throat.n.01", "shoulder.n.01"),
    *("arm.n.01", "elbow.n.01", "forearm.n.01", "wrist.n.01", "hand.n.01", "palm.n.01", "finger.n.01", "thumb.n.01"),
    *("fist.n.01", "chest.n.01", "back.n.01", "waist.n.01", "abdomen.n.01", "hip.n.01", "buttocks.n.01", "leg.n.01"),
    *("thigh.n.01", "knee.n.01", "calf.n.02", "shin.n.01", "ankle.n.01", "foot.n.01", "heel.n.01", "toe.n.01"),
    *("hair.n.01", "beard.n.01", "skin.n.01"),
)
"""Senses that every corpus has: most actions are done with them."""


@dataclass(frozen=True)
class BuildConfig:
    """How a corpus is made.

    Args:
        senses: how a word's sense is chosen: "lesk", weighed for what can be seen, or NLTK's "plain-lesk".
        reach: steps through WordNet's hyponyms and parts from a label's own concepts; 0 for none.
        related: concepts that each step takes at most, the most frequent ones first.
        body_parts: add body parts, whether labels name them or not.
    """

    senses: str = "lesk"
    reach: int = 1
    related: int = 20
    body_parts: bool = True

    def __post_init__(self) -> None:
        if self.senses not in CHOOSERS:
            raise CorpusError(f"senses must be one of {', '.join(CHOOSERS)}, got {self.senses!r}")
        for name in ("reach", "related"):
            if getattr(self, name) < 0:
                raise CorpusError(f"{name} must be >= 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class Report:
    """What was decided, and what is missing: choices of senses; by label, the words that WordNet does not know."""

    choices: list[Choice]
    unknown: dict[str, list[str]]


@dataclass
class _Growing:
    """Entities by the name of their sense, in the order of coming."""

    entities: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)

    def add(self, sense: Synset, unit: str, source: str) -> None:
        """Take a sense in, unless it cannot be seen."""
        category = category_of(sense)
        if category is None:
            return
        self.entities.setdefault(sense.name(), (unit, sense.definition(), category))
        sources = self.sources.setdefault(sense.name(), [])
        if source not in sources:
            sources.append(source)

    def corpus(self) -> Corpus:
        """One entity for each text; senses that read alike are one."""
        merged: dict[tuple[str, str], Entity] = {}
        for name, (unit, description, category) in self.entities.items():
            sources = [f"sense {name}", *self.sources[name]]
            if (unit, description) in merged:
                merged[unit, description].sources.extend(sources)
            else:
                merged[unit, description] = Entity(unit, description, category, sources)
        return Corpus(tuple(merged.values()))


def build(labels: Sequence[str], wordnet: Any, config: BuildConfig) -> tuple[Corpus, Report]:
    """The corpus of some action labels, the same every time. Raises CorpusError when there is nothing to build from."""
    names = list(dict.fromkeys(name for name in map(normalize_label, labels) if name))
    if not names:
        raise CorpusError("no label has a word in it")
    growing = _Growing()
    report = Report([], {})
    if config.body_parts:
        for name in BODY_PARTS:
            sense = wordnet.synset(name)
            growing.add(sense, _said(sense), "body parts")
    roots: dict[str, tuple[Synset, str]] = {}
    for label in tqdm(names, "labels", unit="label", disable=None):
        units, unknown = units_of(label, wordnet)
        if unknown:
            report.unknown[label] = unknown
        for unit in units:
            choice = choose(unit, label, units, wordnet, CHOOSERS[config.senses])
            if choice is None:
                report.unknown.setdefault(label, []).append(unit.text)
                continue
            report.choices.append(choice)
            sense = wordnet.synset(choice.sense)
            growing.add(sense, unit.text, f"label {label}")
            roots.setdefault(choice.sense, (sense, unit.text))
    for sense, root in roots.values():
        for related, how in _related(sense, config.reach, config.related):
            growing.add(related, _said(related), f"{how} {root}")
    return growing.corpus(), report


def extend(before: Corpus, new: Corpus) -> Corpus:
    """The entities of `before`, in their order, and those of `new` that it lacks; sources of shared ones are joined."""
    entities = {(entity.unit, entity.description): entity for entity in before.entities}
    for entity in new.entities:
        key = entity.unit, entity.description
        if key in entities:
            sources = list(dict.fromkeys([*entities[key].sources, *entity.sources]))
            entities[key] = replace(entities[key], sources=sources)
        else:
            entities[key] = entity
    return Corpus(tuple(entities.values()))


def _related(sense: Synset, reach: int, most: int) -> Iterator[tuple[Synset, str]]:
    """Kinds and parts of a concept, people and things named after an action, and the kinds and parts of these."""
    if reach == 0:
        return
    forms = [form.synset() for lemma in sense.lemmas() for form in lemma.derivationally_related_forms()]
    steps = dict.fromkeys(sense.part_meronyms(), "part of")
    steps |= dict.fromkeys(sense.hyponyms(), "kind of")
    steps |= dict.fromkeys((form for form in forms if form.pos() == "n"), "named after")
    for other in _most_frequent(steps, most):
        yield other, steps[other]
        if steps[other] != "named after":
            yield from _related(other, reach - 1, most)


def _most_frequent(senses: Iterable[Synset], most: int) -> list[Synset]:
    def rank(sense: Synset) -> tuple[int, str]:
        return -sum(lemma.count() for lemma in sense.lemmas()), sense.name()

    return sorted(senses, key=rank)[:most]


def _said(sense: Synset) -> str:
    """A sense's first name as text."""
    return str(sense.lemma_names()[0]).replace("_", " ")
