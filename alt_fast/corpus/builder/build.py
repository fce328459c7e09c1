"""From action labels to a corpus: units, descriptions, senses, related concepts (paper, section 3.1 and appendix A)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from alt_fast.corpus import Corpus, CorpusError, Entity
from alt_fast.corpus.builder.implied import KINDS, Implied
from alt_fast.corpus.builder.labels import normalize_label
from alt_fast.corpus.builder.language_model import LanguageModel
from alt_fast.corpus.builder.rankers import open_chooser
from alt_fast.corpus.builder.senses import Candidate, Choice, Chooser, Question, choose, choose_senses, senses_of
from alt_fast.corpus.builder.units import Unit, noun, nouns_of, units_of
from alt_fast.corpus.builder.wordnet import category_of
from alt_fast.errors import check_at_least
from alt_fast.progress import Progress

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
        senses: who chooses a description, see `rankers.open_chooser`.
        reach: steps through WordNet's hyponyms and parts from a label's own concepts; 0 for none.
        related: concepts that each step takes at most, the most frequent ones first.
        glosses: add the things that the glosses of a label's own concepts speak of.
        body_parts: add body parts, whether labels name them or not.
        things_as_actions: ask a language model what an action looks like of every phrase that it describes, as appendix
            A has it, things included.
    """

    senses: str = "lesk"
    reach: int = 1
    related: int = 20
    glosses: bool = True
    body_parts: bool = True
    things_as_actions: bool = False

    def __post_init__(self) -> None:
        check_at_least(self, reach=0, related=0)


@dataclass
class Report:
    """What was decided and what is missing.

    choices: of descriptions. unknown: by label, words that nothing describes. skipped: by label as it was given, why it
    was left out. unusable: prompts that the language model answered with nothing of use.
    """

    choices: list[Choice] = field(default_factory=list)
    unknown: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    unusable: list[str] = field(default_factory=list)


class _Growing:
    """Entities in the order of coming, by sense or text, with where they come from."""

    def __init__(self) -> None:
        self.entities: dict[str, Entity] = {}

    def add(self, candidate: Candidate, unit: str, sources: Sequence[str], category: str | None) -> None:
        """Take a description in, unless it is of something that cannot be seen. category: where WordNet has none."""
        sense = candidate.synset
        if sense is not None:
            category = category_of(sense) or category
            sources = [f"sense {sense.name()}", *sources]
        if category is None:
            return
        key = f"{unit}: {candidate.description}" if sense is None else sense.name()
        entity = self.entities.setdefault(key, Entity(unit, candidate.description, category))
        entity.sources.extend(source for source in sources if source not in entity.sources)

    def corpus(self) -> Corpus:
        """One entity for each text: senses that read alike are one."""
        merged: dict[tuple[str, str], Entity] = {}
        for entity in self.entities.values():
            first = merged.setdefault((entity.unit, entity.description), entity)
            first.sources.extend(source for source in entity.sources if source not in first.sources)
        return Corpus(tuple(merged.values()))


def build(
    labels: Sequence[str], wordnet: Any, config: BuildConfig, model: LanguageModel | None = None
) -> tuple[Corpus, Report]:
    """The corpus of some action labels, the same every time; its notes say how it was made.

    model: a language model that adds what labels imply and describes phrases; None works from WordNet alone. Raises
    CorpusError when no label has a word in it, or when the language model fails for good.
    """
    report = Report()
    names = _names(labels, report)
    chooser = open_chooser(config.senses, wordnet)
    growing = _Growing()
    if config.body_parts:
        for sense in map(wordnet.synset, BODY_PARTS):
            growing.add(_candidate(sense), _said(sense), ["body parts"], None)
    parts = {label: units_of(label, wordnet) for label in names}
    implied = Implied()
    if model is not None:
        implied.ask_for_units(names, model)
        phrases = _phrases(parts, implied, wordnet)
        actions = {phrase: action or config.things_as_actions for phrase, action in phrases.items()}
        implied.ask_for_descriptions(actions, model)
        report.unusable = implied.unusable
    roots: dict[str, Synset] = {}
    for label in Progress(names, "labels", "label"):
        units, unknown = parts[label]
        choices = choose_senses(label, units, wordnet, chooser)
        for unit, choice in choices.items():
            sense = wordnet.synset(choice.chosen)
            roots.setdefault(choice.chosen, sense)
            growing.add(_candidate(sense), unit_name(unit, sense), [f"label {label}"], _of_verb(unit))
        own = [wordnet.synset(choice.chosen) for choice in choices.values()]
        report.choices += [*choices.values(), *_add_implied(label, own, implied, wordnet, chooser, growing)]
        if missing := [word for word in unknown if not implied.descriptions.get(word)]:
            report.unknown[label] = missing
    for sense in Progress(roots.values(), "related concepts", "concept"):
        for related, how in _related(sense, config.reach, config.related):
            growing.add(_candidate(related), _said(related), [how], None)
        if config.glosses:
            for unit, choice in _in_gloss(sense, wordnet, chooser):
                found = wordnet.synset(choice.chosen)
                growing.add(_candidate(found), unit_name(unit, found), [f"in the gloss of {sense.name()}"], None)
    notes = {
        "made_with": {**asdict(config), "language_model": None if model is None else model.settings.model},
        "labels": names,
        "choices": [asdict(choice) for choice in report.choices],
    }
    return replace(growing.corpus(), notes=notes), report


def extend(before: Corpus, new: Corpus) -> Corpus:
    """The entities of `before`, in their order, and those of `new` that it lacks; sources of shared ones are joined.

    Notes are those of `new`, but for the labels and choices of both, and the larger `reach`.
    """
    entities = {(entity.unit, entity.description): entity for entity in before.entities}
    for entity in new.entities:
        key = entity.unit, entity.description
        if key in entities:
            sources = list(dict.fromkeys([*entities[key].sources, *entity.sources]))
            entities[key] = replace(entities[key], sources=sources)
        else:
            entities[key] = entity
    made = [corpus.notes.get("made_with", {}) for corpus in (before, new)]
    notes = {**before.notes, **new.notes, "made_with": {**made[1], "reach": max(each.get("reach", 1) for each in made)}}
    for name in ("labels", "choices"):
        known = before.notes.get(name, [])
        notes[name] = [*known, *(item for item in new.notes.get(name, []) if item not in known)]
    return Corpus(tuple(entities.values()), notes)


def unit_name(unit: Unit, sense: Synset) -> str:
    """What a unit is called in a sense: the form of it that the sense has ("putt" of "putting" in golf)."""
    named = {name.lower().replace("_", " ") for name in sense.lemma_names()}
    return next((form for form in unit.forms if form in named), unit.text)


def _names(labels: Sequence[str], report: Report) -> list[str]:
    """Labels as text, each once; those left out are reported."""
    names: dict[str, None] = {}
    for label in labels:
        name = normalize_label(label)
        if not name:
            report.skipped[label] = "has no word in it"
        elif name in names:
            report.skipped[label] = "repeats another label"
        else:
            names[name] = None
    if not names:
        raise CorpusError("no label has a word in it")
    return list(names)


def _phrases(parts: dict[str, tuple[list[Unit], list[str]]], implied: Implied, wordnet: Any) -> dict[str, bool]:
    """What a language model has to describe, and whether that is an action.

    Whole labels of several words, and words of labels and implied units that WordNet does not know.
    """
    phrases: dict[str, bool] = {}
    for label, (_, unknown) in parts.items():
        if " " in label:
            phrases[label] = True
        phrases |= {word: word == label for word in unknown if word not in phrases}
        for unit, _ in implied.units[label]:
            if noun(unit, wordnet) is None:
                phrases.setdefault(unit, False)
    return phrases


def _add_implied(
    label: str, own: Sequence[Synset], implied: Implied, wordnet: Any, chooser: Chooser, growing: _Growing
) -> Iterator[Choice]:
    """Add what the language model said of a label; yields the choices made."""
    asked = [(unit, f"{kind} of {label}", KINDS[kind]) for unit, kind in implied.units.get(label, ())]
    asked += [
        (text, "phrase", "motion" if text == label else "object")
        for text in dict.fromkeys([label, *label.split()])
        if text in implied.descriptions
    ]
    for text, how, category in asked:
        unit = noun(text, wordnet) or Unit((text,), "n")
        senses = senses_of(unit, wordnet)
        candidates = [Candidate(sense.definition(), sense) for sense in senses]
        if text in implied.descriptions:
            candidates = [Candidate(description) for description in implied.descriptions[text]]
        if candidates:
            choice = choose(Question(label, unit, candidates, neighbours=own), chooser)
            chosen = next(candidate for candidate in candidates if candidate.name == choice.chosen)
            name = text if chosen.synset is None else unit_name(unit, chosen.synset)
            growing.add(chosen, name, [f"label {label}", f"language model, {how}"], category)
            yield choice


def _related(sense: Synset, reach: int, most: int) -> Iterator[tuple[Synset, str]]:
    """Kinds and parts of a concept, in `reach` steps; terms of its field; people and things named after an action."""
    if reach == 0:
        return
    forms = [form.synset() for lemma in sense.lemmas() for form in lemma.derivationally_related_forms()]
    steps = dict.fromkeys(sense.part_meronyms(), "part of")
    steps |= dict.fromkeys(sense.hyponyms(), "kind of")
    steps |= dict.fromkeys((form for form in forms if form.pos() == "n"), "named after")
    steps |= dict.fromkeys((term for term in sense.in_topic_domains() if term.pos() in "nv"), "term of")
    for other in _most_frequent(steps, most):
        yield other, f"{steps[other]} {sense.name()}"
        if steps[other] in ("part of", "kind of"):
            yield from _related(other, reach - 1, most)


def _in_gloss(sense: Synset, wordnet: Any, chooser: Chooser) -> Iterator[tuple[Unit, Choice]]:
    """The things that a gloss speaks of, in their senses: archery shoots arrows with a bow."""
    gloss = sense.definition()
    senses = {unit: found for unit in nouns_of(gloss, wordnet) if (found := senses_of(unit, wordnet))}
    for unit in senses:
        around = [sense, *(other for unit_, found in senses.items() if unit_ != unit for other in found)]
        question = Question(gloss, unit, [_candidate(found) for found in senses[unit]], neighbours=around)
        yield unit, choose(question, chooser)


def _most_frequent(senses: Iterable[Synset], most: int) -> list[Synset]:
    def rank(sense: Synset) -> tuple[int, str]:
        return -sum(lemma.count() for lemma in sense.lemmas()), sense.name()

    return sorted(senses, key=rank)[:most]


def _candidate(sense: Synset) -> Candidate:
    return Candidate(sense.definition(), sense)


def _of_verb(unit: Unit) -> str | None:
    """What a label says is done is seen, whatever WordNet files the verb under (reading is cognition there)."""
    return "motion" if unit.pos == "v" else None


def _said(sense: Synset) -> str:
    """A sense's first name as text."""
    return str(sense.lemma_names()[0]).replace("_", " ")
