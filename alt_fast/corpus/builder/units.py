"""Action labels to the words and phrases that they are made of (paper, appendix A, step 1)."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nltk.tokenize import TreebankWordTokenizer

PartOfSpeech = Literal["n", "v"]

STOP_WORDS = frozenset(
    """a an the and or nor but not no of on in into onto at to from by with without for over under up down out off
    through is are be being been do does doing did have has having it its he she they his her him them this that these
    those who whom which what as than then so such very too some any each every all both other own same only
    something someone somebody person people using use""".split()  # noqa: SIM905
)
_CLITICS = frozenset(("'s", "'re", "'ve", "'ll", "'d", "'m"))
_LONGEST = 4  # words of a WordNet entry such as "rock paper scissors"


@dataclass(frozen=True)
class Unit:
    """A word or phrase, as WordNet has it.

    forms: what it may be a form of, the likeliest first ("putting": "put", "putt"); more than one where WordNet knows
    several.
    """

    forms: tuple[str, ...]
    pos: PartOfSpeech

    @property
    def text(self) -> str:
        return self.forms[0]


def units_of(label: str, wordnet: Any) -> tuple[list[Unit], list[str]]:
    """The units of a normalised label, and its words that WordNet does not know.

    The longest phrases that WordNet knows are taken first. A word in -ing is its verb, and alone in a label ("bowling")
    its noun too. Where no word ends in -ing, the first may be a verb ("kick ball"): it is what it is more often. All
    others are nouns if they can be. Words that WordNet lacks are taken apart ("kitesurfing").
    """
    words = _words(label)
    acting = any(_participle(word, wordnet) for word in words)
    units: list[Unit] = []
    unknown: list[str] = []
    start = 0
    while start < len(words):
        word = words[start]
        for length in range(min(_LONGEST, len(words) - start), 1, -1):
            phrase = _phrase(words[start : start + length], wordnet)
            if phrase is not None:
                units += [phrase, *_doing(word, wordnet)]  # "skipping rope"
                start += length
                break
        else:
            doing = _doing(word, wordnet)
            if doing and len(words) > 1:
                found = doing
            else:
                unit = _word(word, None if start == 0 and not acting else "n", wordnet)
                found = list(dict.fromkeys([unit, *doing])) if unit is not None else _parts(word, wordnet)
            units += found
            unknown += [] if found or word in STOP_WORDS else [word]
            start += 1
    return list(dict.fromkeys(units)), unknown


def nouns_of(text: str, wordnet: Any) -> list[Unit]:
    """The words of a running text that are nouns more often than anything else, and WordNet's noun phrases in it."""
    words = _words(text.lower())
    units: list[Unit] = []
    start = 0
    while start < len(words):
        for length in range(min(_LONGEST, len(words) - start), 1, -1):
            phrase = _phrase(words[start : start + length], wordnet)
            if phrase is not None:
                units.append(phrase)
                start += length
                break
        else:
            unit = _word(words[start], "n", wordnet)
            if unit is not None and unit.pos == "n" and _mostly_noun(words[start], unit, wordnet):
                units.append(unit)
            start += 1
    return list(dict.fromkeys(units))


def noun(text: str, wordnet: Any) -> Unit | None:
    """The noun, or noun phrase, that a text is as a whole."""
    words = _words(text.lower())
    if len(words) > 1:
        return _phrase(words, wordnet) if len(words) <= _LONGEST else None
    unit = _word(words[0], "n", wordnet) if words else None
    return unit if unit is not None and unit.pos == "n" else None


def count(sense: Any, names: Iterable[str]) -> int:
    """How often WordNet's tagged texts use one of these names in this sense."""
    lowered = {name.replace(" ", "_").lower() for name in names}
    return sum(lemma.count() for lemma in sense.lemmas() if lemma.name().lower() in lowered)


def _words(text: str) -> list[str]:
    words = (word for word in TreebankWordTokenizer().tokenize(text) if word not in _CLITICS)
    return [word.strip("'") for word in words if re.search(r"\w", word)]


def _participle(word: str, wordnet: Any) -> bool:
    """Whether a word is a verb with -ing: "swinging", but not "swing"."""
    return word.endswith("ing") and word not in STOP_WORDS and word not in _forms(word, "v", wordnet)


def _doing(word: str, wordnet: Any) -> list[Unit]:
    """The verb that a word in -ing is, if it is one."""
    verbs = _forms(word, "v", wordnet) if _participle(word, wordnet) else ()
    return [Unit(verbs, "v")] if verbs else []


def _phrase(words: Sequence[str], wordnet: Any) -> Unit | None:
    """The noun of several words, however WordNet writes it: "rock climbing", "yo-yo", "beekeeping", "pushup"."""
    one_word = words[-1].endswith("ing") or words[-1] in STOP_WORDS  # a side kick is no sidekick
    for joint in ("_", "-", "") if one_word else ("_", "-"):
        if forms := _forms(joint.join(words), "n", wordnet):
            return Unit(forms, "n")
    return None


def _word(word: str, prefer: PartOfSpeech | None, wordnet: Any) -> Unit | None:
    """The unit that a word is. prefer: its part of speech if it can be either, None for the usual one."""
    if word in STOP_WORDS:
        return None
    nouns, verbs = _forms(word, "n", wordnet), _forms(word, "v", wordnet)
    if prefer is None:
        prefer = "v" if _count(verbs, "v", wordnet) > _count(nouns, "n", wordnet) else "n"
    if nouns and (prefer == "n" or not verbs):
        return Unit(nouns, "n")
    return Unit(verbs, "v") if verbs else None


def _parts(word: str, wordnet: Any) -> list[Unit]:
    """What a word that WordNet lacks is made of: "situp" is its "sit-up", "kitesurfing" a kite and to surf.

    A verb made of a noun is the noun: "texting" is a text.
    """
    if word in STOP_WORDS:
        return []
    if word.endswith("ing"):
        for stem in (word[:-3], word[:-3] + "e"):
            if len(stem) > 2 and (unit := noun(stem, wordnet)):
                return [unit]
    splits = [(word[:end], word[end:]) for end in range(len(word) - 2, 2, -1)]
    for pair in splits:
        if unit := _phrase(pair, wordnet):
            return [unit]
    best: list[Unit] = []
    known = -1 if word.endswith("ing") else 0  # other rare words are seldom compounds: "macarena"
    for first, second in splits:
        if len(second) > 2:
            units = _word(first, "n", wordnet), next(iter(_doing(second, wordnet)), _word(second, "n", wordnet))
            seen = min(_count(unit.forms, unit.pos, wordnet) if unit else 0 for unit in units)
            if all(units) and seen > known:
                best, known = [unit for unit in units if unit], seen
    return best


def _forms(name: str, pos: str, wordnet: Any) -> tuple[str, ...]:
    """What a word may be a form of: the exceptions that WordNet lists, then what its endings say.

    Its public `morphy` gives the first only: "put" of "putting", not "putt".
    """
    found = [*wordnet._morphy(name, pos), *wordnet._morphy(name, pos, check_exceptions=False)]
    return tuple(dict.fromkeys(form.replace("_", " ") for form in found))


def _count(forms: Sequence[str], pos: str, wordnet: Any) -> int:
    return sum(count(sense, forms) for form in forms for sense in wordnet.synsets(form.replace(" ", "_"), pos))


def _mostly_noun(word: str, unit: Unit, wordnet: Any) -> bool:
    as_noun = _count(unit.forms, "n", wordnet)
    return all(_count(_forms(word, pos, wordnet), pos, wordnet) <= as_noun for pos in "var")
