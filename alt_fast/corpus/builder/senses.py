"""Which description a unit has in an action label: word sense disambiguation (paper, appendix A, step 3)."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nltk.stem import PorterStemmer
from nltk.wsd import lesk

from alt_fast.corpus.builder.units import STOP_WORDS, Unit, count
from alt_fast.corpus.builder.wordnet import ACTS, category_of

Synset = Any


@dataclass(frozen=True)
class Candidate:
    """A description that a unit may have. synset: the WordNet sense that it is of, None for a language model's."""

    description: str
    synset: Synset = None

    @property
    def name(self) -> str:
        """What choices call it."""
        return self.description if self.synset is None else self.synset.name()


@dataclass(frozen=True)
class Question:
    """Which of `candidates` is `unit` in `label`?

    units: all units of the label, in its order. neighbours: the senses of the others, the chosen ones where they are
    chosen, else all that they have.
    """

    label: str
    unit: Unit
    candidates: Sequence[Candidate]
    units: Sequence[Unit] = ()
    neighbours: Sequence[Synset] = ()


@dataclass(frozen=True)
class Choice:
    """The description chosen for a unit of a label, with the scores of all candidates by name, the best first."""

    label: str
    unit: str
    chosen: str
    scores: dict[str, float]


Chooser = Callable[[Question], list[float]]
"""Scores of a question's candidates; the highest wins."""


def senses_of(unit: Unit, wordnet: Any) -> list[Synset]:
    """The senses of a unit, the more frequent ones first; names of single people and places are none."""
    found = [sense for form in unit.forms for sense in wordnet.synsets(form.replace(" ", "_"), unit.pos)]
    unique = list({sense.name(): sense for sense in found}.values())
    return [sense for sense in unique if not sense.instance_hypernyms()]


def choose_senses(label: str, units: Sequence[Unit], wordnet: Any, chooser: Chooser) -> dict[Unit, Choice]:
    """The senses of a label's units. Nouns come first: what is played tells what playing is."""
    senses = {unit: found for unit in units if (found := senses_of(unit, wordnet))}
    choices: dict[Unit, Choice] = {}
    for pos in ("n", "v"):
        answers = {}
        for unit in (unit for unit in senses if unit.pos == pos):
            neighbours = [sense for other in units if other != unit for sense in senses.get(other, ())]
            candidates = [Candidate(sense.definition(), sense) for sense in senses[unit]]
            answers[unit] = choose(Question(label, unit, candidates, units, neighbours), chooser)
        choices |= answers
        senses |= {unit: [wordnet.synset(choice.chosen)] for unit, choice in answers.items()}
    return {unit: choices[unit] for unit in units if unit in choices}


def choose(question: Question, chooser: Chooser) -> Choice:
    """The candidate with the highest score; of equals the first."""
    scores = chooser(question)
    names = [candidate.name for candidate in question.candidates]
    ranked = sorted(zip(names, scores, strict=True), key=lambda pair: -pair[1])
    rounded = {name: round(score, 3) for name, score in ranked}
    return Choice(question.label, question.unit.text, ranked[0][0], rounded)


def plain_lesk(question: Question) -> list[float]:
    """NLTK's Lesk: words shared by the label and the sense's gloss, of equals the more frequent sense.

    It knows WordNet's senses only; of other descriptions the first wins.
    """
    senses = [candidate.synset for candidate in question.candidates if candidate.synset is not None]
    best = lesk(question.label.split(), question.unit.text.replace(" ", "_"), synsets=senses) if senses else None
    return [float(candidate.synset is not None and candidate.synset == best) for candidate in question.candidates]


@dataclass(frozen=True)
class VisualLesk:
    """Lesk for actions that are seen: shared words, weighted by rarity, and what WordNet and the label's form say.

    Terms: words that the candidate and its neighbours in WordNet share with the label, and that it shares with the
    label's other units; how frequent the sense is; whether the synset is named after the unit; whether it can be seen;
    whether the gloss restricts it to a field that the label does not name ("(cricket) ..."); and its kind, see `_kind`.
    The weights were set on 61 hand-made choices, none of which is in benchmarks/kinetics400_senses.csv.
    """

    wordnet: Any

    def __call__(self, question: Question) -> list[float]:
        """Scores of the candidates; a word that is in one gloss only counts 1 to 2, depending on where it is shared."""
        weigh = _rarity(self.wordnet)
        me = {_stem(word) for form in question.unit.forms for word in form.split()}
        said = frozenset(_words(question.label)) - me
        others = frozenset().union(*(_texts(sense) | _above(sense) for sense in question.neighbours)) - me
        around = frozenset().union(*(_near(sense) for sense in question.neighbours)) - others - me
        scores = []
        for candidate in question.candidates:
            sense = candidate.synset
            own = frozenset(_words(candidate.description)) if sense is None else _texts(sense)
            near = own if sense is None else own | _near(sense)
            score = 2.0 * weigh(near & said) + weigh(own & others) + 0.5 * weigh(own & around)
            if sense is not None:
                score += math.log1p(count(sense, question.unit.forms)) + _kind(sense, question)
            scores.append(score)
        return scores


def _kind(sense: Synset, question: Question) -> float:
    """How well the kind of a sense fits its place in the label, whatever the words say.

    Nouns: a label without a verb ends with its action ("javelin throw"); what is played is a game or a musical
    instrument; what anything else is done with is a thing ("hitting baseball"). Verbs: what is done to a musical
    instrument makes it sound.
    """
    named = sense.lemma_names()[0].lower().replace("_", " ") in question.unit.forms
    score = 0.5 * named + 2.0 * (category_of(sense) is not None)
    field = re.match(r"\(([^)]*)\)", sense.definition())
    if field is not None and not set(_words(field[1])) & set(_words(question.label)):
        score -= 3.0
    kind = sense.lexname()
    if question.unit.pos == "v":
        music = any(_is_instrument(neighbour) for neighbour in question.neighbours)
        return score + (kind in _PHYSICAL_VERBS) + 4.0 * (music and _stem("instrument") in _texts(sense))
    verbs = [unit.text for unit in question.units if unit.pos == "v"]
    if "play" in verbs:
        return score + 2.0 * (kind == "noun.act" or _is_instrument(sense))
    if verbs:
        return score + (category_of(sense) in ("object", "body"))
    return score + 2.0 * (kind in ACTS and question.units[-1:] == [question.unit])


_PHYSICAL_VERBS = frozenset(
    f"verb.{kind}"
    for kind in ("body", "change", "competition", "consumption", "contact", "creation", "motion", "perception")
)


@lru_cache(maxsize=50_000)
def _texts(sense: Synset) -> frozenset[str]:
    """Words of a sense's gloss, examples and names."""
    return _bag([sense.definition(), *sense.examples(), *sense.lemma_names()])


@lru_cache(maxsize=50_000)
def _near(sense: Synset) -> frozenset[str]:
    """Words of the glosses and names of a sense's neighbours in WordNet."""
    kinds = sorted(sense.hyponyms(), key=lambda kind: kind.name())[:10]  # NLTK gives them in no order
    derived = [form.synset() for lemma in sense.lemmas() for form in lemma.derivationally_related_forms()]
    near = [*sense.hypernyms(), *kinds, *sense.part_meronyms(), *sense.verb_groups(), *derived]
    return _bag(text for other in near for text in (other.definition(), *other.lemma_names()))


@lru_cache(maxsize=50_000)
def _above(sense: Synset, levels: int = 4) -> frozenset[str]:
    """Words of the glosses and names of what a sense is a kind of: a guitar is an instrument for music."""
    above, level = [], [sense]
    for _ in range(levels):
        level = [parent for child in level for parent in child.hypernyms()]
        above += level
    return _bag(text for other in above for text in (other.definition(), *other.lemma_names()))


@lru_cache(maxsize=50_000)
def _is_instrument(sense: Synset) -> bool:
    return any(parent.name() == "musical_instrument.n.01" for path in sense.hypernym_paths() for parent in path)


def _bag(texts: Any) -> frozenset[str]:
    return frozenset(word for text in texts for word in _words(text))


def _words(text: str) -> list[str]:
    """Content words, stemmed."""
    found = re.findall(r"[a-z]+", text.lower().replace("_", " "))
    return [_stem(word) for word in found if word not in STOP_WORDS]


_porter = PorterStemmer()


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    return str(_porter.stem(word))


@lru_cache(maxsize=4)
def _rarity(wordnet: Any) -> Callable[[frozenset[str]], float]:
    """Sum over words of their inverse document frequency in WordNet's glosses, 1 for a word of a single gloss."""
    glosses: Counter[str] = Counter()
    number = 0
    for pos in ("noun", "verb"):
        with wordnet.open(f"data.{pos}") as file:
            for line in file:
                if not line.startswith("  "):  # the licence
                    number += 1
                    glosses.update(set(_words(line.split("|", 1)[1])))
    most = math.log(number + 1)

    def weigh(words: frozenset[str]) -> float:
        return sum(math.log((number + 1) / max(1, glosses[word])) for word in words) / most

    return weigh
