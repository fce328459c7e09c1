"""Class names described in a sentence, as FROSTER (arXiv 2402.03241) and TC-CLIP have them: "name: description"."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alt_fast.corpus import ENTITY_TEMPLATE
from alt_fast.corpus.builder.implied import Implied
from alt_fast.corpus.builder.labels import normalize_label
from alt_fast.corpus.builder.language_model import LanguageModel
from alt_fast.corpus.builder.rankers import open_chooser
from alt_fast.corpus.builder.senses import choose_senses
from alt_fast.corpus.builder.units import units_of
from alt_fast.data.annotations import name_key, spoken
from alt_fast.progress import Progress


@dataclass
class Rephrased:
    """texts: one of each class, by its label. plain: labels that nothing describes. repeated: labels of a class before.

    A label that nothing describes is its own text.
    """

    texts: dict[str, str] = field(default_factory=dict)
    plain: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)


def rephrase(labels: Sequence[str], wordnet: Any, senses: str = "lesk") -> Rephrased:
    """Describe labels by WordNet's glosses of their words, in the senses that these have there.

    senses: who chooses them, see `rankers.open_chooser`. Raises CorpusError as that does.
    """
    chooser = open_chooser(senses, wordnet)
    found = {}
    for label in Progress(labels, "labels", "label"):
        name = normalize_label(label)
        choices = choose_senses(name, units_of(name, wordnet)[0], wordnet, chooser)
        glosses = (wordnet.synset(choice.chosen).definition() for choice in choices.values())
        found[label] = "; ".join(dict.fromkeys(glosses))
    return _rephrased(labels, found)


def rephrase_by_model(labels: Sequence[str], model: LanguageModel) -> Rephrased:
    """Describe labels by what a language model says that they look like. Raises CorpusError as LanguageModel.ask."""
    names = {label: normalize_label(label) for label in labels}
    looks = Implied().looks([name for name in dict.fromkeys(names.values()) if name], model)
    return _rephrased(labels, {label: looks.get(name, "") for label, name in names.items()})


def _rephrased(labels: Sequence[str], descriptions: Mapping[str, str]) -> Rephrased:
    """descriptions: by label, empty where there is none."""
    done = Rephrased()
    seen: set[str] = set()
    for label in labels:
        if name_key(label) in seen:
            done.repeated.append(label)
            continue
        seen.add(name_key(label))
        if description := descriptions[label]:
            done.texts[label] = ENTITY_TEMPLATE.format(unit=spoken(label), description=description)
        else:
            done.texts[label] = label
            done.plain.append(label)
    return done
