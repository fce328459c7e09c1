"""Action labels to the words and phrases that they are made of (paper, appendix A, step 1)."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from nltk.tokenize import TreebankWordTokenizer

from alt_fast.data.annotations import spoken

STOP_WORDS = frozenset(
    """a an the and or nor but not no of on in into onto at to from by with without for over under up down out off
    through is are be being been do does doing did have has having it its he she they his her him them this that these
    those who whom which what as than then so such very too some any each every all both other own same only
    something someone somebody person people using use""".split()  # noqa: SIM905
)
_LONGEST = 4  # words of a WordNet entry such as "rock paper scissors"


@dataclass(frozen=True)
class Unit:
    """A word or phrase of a label, as WordNet has it. pos: "n" or "v"."""

    text: str
    pos: str


def normalize_label(label: str) -> str:
    """A label as text in lower case: "BaseballPitch" and "baseball_pitch" become "baseball pitch".

    What it says not to be, as in "petting animal (not cat)", is left out; other words in brackets stay.
    """
    text = spoken(unicodedata.normalize("NFKC", label)).lower()
    text = re.sub(r"\(\s*not\b[^)]*\)", " ", text)
    text = re.sub(r"[^\w\s'-]|_", " ", text)
    return " ".join(text.split())


def units_of(label: str, wordnet: Any) -> tuple[list[Unit], list[str]]:
    """The units of a normalised label, and its words that WordNet does not know.

    The longest phrases that WordNet knows are taken first. A word in -ing is its verb, unless it stands alone and is a
    noun too ("archery", "bowling").
    """
    words = [word for word in TreebankWordTokenizer().tokenize(label) if re.search(r"\w", word) and word[0] != "'"]
    units: list[Unit] = []
    unknown: list[str] = []
    start = 0
    while start < len(words):
        for length in range(min(_LONGEST, len(words) - start), 0, -1):
            unit = _known(words[start : start + length], len(words) == 1, wordnet)
            if unit is not None:
                units.append(unit)
                break
        else:
            length = 1
            if words[start] not in STOP_WORDS:
                unknown.append(words[start])
        start += length
    return list(dict.fromkeys(units)), unknown


def _known(words: list[str], alone: bool, wordnet: Any) -> Unit | None:
    """The unit that these words are in WordNet."""
    name = "_".join(words)
    if len(words) > 1:
        lemma = wordnet.morphy(name, "n")
        return Unit(lemma.replace("_", " "), "n") if lemma and "_" in lemma else None
    if name in STOP_WORDS:
        return None
    verb, noun = wordnet.morphy(name, "v"), wordnet.morphy(name, "n")
    if name.endswith("ing") and verb and not (alone and noun):
        return Unit(verb, "v")
    if noun:
        return Unit(noun, "n")
    return Unit(verb, "v") if verb else None
