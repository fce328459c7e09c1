"""Which of its senses a word has in an action label (paper, appendix A, step 3)."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nltk.wsd import lesk

from alt_fast.corpus.units import STOP_WORDS, Unit
from alt_fast.corpus.wordnet import category_of

Synset = Any


@dataclass(frozen=True)
class Choice:
    """A sense chosen for a unit of a label, with the scores of all candidates, by WordNet's names, best first."""

    label: str
    unit: str
    sense: str
    scores: dict[str, float]


Chooser = Callable[[Unit, str, Sequence[Unit], Sequence[Synset]], list[float]]
"""Scores of the candidates for a unit, from the label and its other units."""


def choose(unit: Unit, label: str, units: Sequence[Unit], wordnet: Any, chooser: Chooser) -> Choice | None:
    """The best of the unit's senses, names of single people and places aside; None when it has none.

    Of equals it is WordNet's more frequent one.
    """
    found = wordnet.synsets(unit.text.replace(" ", "_"), unit.pos)
    candidates = [sense for sense in found if not sense.instance_hypernyms()]
    if not candidates:
        return None
    scores = chooser(unit, label, [other for other in units if other != unit], candidates)
    ranked = sorted(zip(candidates, scores, strict=True), key=lambda pair: -pair[1])
    return Choice(label, unit.text, ranked[0][0].name(), {sense.name(): round(score, 3) for sense, score in ranked})


def plain_lesk(unit: Unit, label: str, others: Sequence[Unit], candidates: Sequence[Synset]) -> list[float]:
    """NLTK's Lesk: words shared by the label and the sense's gloss."""
    best = lesk(label.split(), unit.text.replace(" ", "_"), synsets=set(candidates))
    return [float(sense == best) for sense in candidates]


def visual_lesk(unit: Unit, label: str, others: Sequence[Unit], candidates: Sequence[Synset]) -> list[float]:
    """Lesk over what the senses of the label's other units say too, for what can be seen in a video of an action.

    Three terms: shared words of the sense's surroundings in WordNet and the label's; the sense's frequency; and whether
    the sense is something to be seen, in a field that the label does not exclude.
    """
    context = set(_words(label)) - set(_words(unit.text))
    neighbours = [sense for other in others for sense in _senses(other, candidates)]
    around = frozenset().union(*(_surroundings(sense) for sense in neighbours))
    scores = []
    for sense in candidates:
        signature = _surroundings(sense)
        shared = 2.0 * len(signature & context) + 1.0 * len(signature & around)
        frequency = math.log1p(sum(lemma.count() for lemma in sense.lemmas() if lemma.name().lower() == _name(unit)))
        field = re.match(r"\(([^)]*)\)", sense.definition())
        foreign = field is not None and not set(_words(field[1])) & set(_words(label))
        scores.append(shared + frequency + 2.0 * (category_of(sense) is not None) - 3.0 * foreign)
    return scores


CHOOSERS: dict[str, Chooser] = {"lesk": visual_lesk, "plain-lesk": plain_lesk}


def _name(unit: Unit) -> str:
    return unit.text.replace(" ", "_").lower()


def _senses(unit: Unit, candidates: Sequence[Synset]) -> list[Synset]:
    """The senses of another unit, from the WordNet that the candidates are of."""
    return candidates[0]._wordnet_corpus_reader.synsets(_name(unit), unit.pos)


@lru_cache(maxsize=20_000)
def _surroundings(sense: Synset) -> frozenset[str]:
    """Words of a sense's gloss, examples and names, and of its neighbours' glosses."""
    kinds = sorted(sense.hyponyms(), key=lambda kind: kind.name())[:10]  # NLTK gives them in no order
    near = [*sense.hypernyms(), *kinds, *sense.part_meronyms(), *sense.verb_groups()]
    texts = [sense.definition(), *sense.examples(), *sense.lemma_names(), *(other.definition() for other in near)]
    return frozenset(word for text in texts for word in _words(text))


def _words(text: str) -> list[str]:
    """Content words, roughly stemmed."""
    found = re.findall(r"[a-z]+", text.lower().replace("_", " "))
    return [
        re.sub(r"(ing|ed|es|s|er)$", "", word) if len(word) > 4 else word for word in found if word not in STOP_WORDS
    ]
