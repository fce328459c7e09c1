"""A WordNet of a few senses, in WordNet's own file format."""

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from alt_fast.corpus.builder.build import BODY_PARTS
from alt_fast.corpus.builder.wordnet import LEXNAMES, open_wordnet

SYMBOLS = {"hypernym": "@", "hyponym": "~", "part": "%p", "instance": "@i", "derived": "+", "term": "-c"}


class Sense(NamedTuple):
    """words: of the synset. links: of (relation, first word of the other, its lexname)."""

    words: tuple[str, ...]
    lexname: str
    gloss: str
    count: int = 0  # type: ignore[assignment]  # a tuple has a method of this name
    links: tuple[tuple[str, str, str], ...] = ()


SENSES = [
    Sense(("structure",), "noun.artifact", "a thing constructed"),
    Sense(
        ("pool",), "noun.artifact", "an excavation filled with water", 2, (("hypernym", "structure", "noun.artifact"),)
    ),
    Sense(
        ("guitar",),
        "noun.artifact",
        "a stringed instrument that you play with your fingers",
        1,
        (
            ("hypernym", "musical_instrument", "noun.artifact"),
            ("hyponym", "bass_guitar", "noun.artifact"),
            ("hyponym", "acoustic_guitar", "noun.artifact"),
            ("part", "fingerboard", "noun.artifact"),
        ),
    ),
    Sense(("bass_guitar",), "noun.artifact", "the lowest guitar", 5, (("hypernym", "guitar", "noun.artifact"),)),
    Sense(
        ("acoustic_guitar",), "noun.artifact", "a guitar without pickup", 0, (("part", "soundhole", "noun.artifact"),)
    ),
    Sense(("fingerboard",), "noun.artifact", "a strip of wood under the strings"),
    Sense(("soundhole",), "noun.artifact", "a hole"),
    Sense(("burger", "hamburger"), "noun.food", "a sandwich of minced beef"),
    Sense(("Burger",), "noun.person", "a chief justice", 9, (("instance", "judge", "noun.person"),)),
    Sense(("judge",), "noun.person", "one who decides"),
    Sense(("idea",), "noun.cognition", "the content of a thought", 9),
    Sense(("bowling",), "noun.act", "(cricket) the delivery of a ball to the batsman", 3),
    Sense(("bowling",), "noun.event", "a game in which balls are rolled at pins", 0, (("term", "spare", "noun.act"),)),
    Sense(("spare",), "noun.act", "knocking down all pins"),
    Sense(("bowl",), "verb.contact", "deliver a ball", 1),
    Sense(("bowl",), "noun.artifact", "a round vessel"),
    Sense(("musical_instrument",), "noun.artifact", "a device to make music with"),
    Sense(("jumping_pool",), "noun.artifact", "a pool for jumps"),
    Sense(("put",), "verb.contact", "put into a place", 2),
    Sense(("putt",), "verb.contact", "hit a ball lightly, in golf"),
    Sense(("yo-yo",), "noun.artifact", "a toy"),
    Sense(("beekeeping",), "noun.act", "the keeping of bees"),
    Sense(("sidekick",), "noun.person", "a close friend"),
    Sense(("read",), "verb.cognition", "interpret something that is written", 9),
    Sense(("tickle",), "verb.contact", "touch lightly"),
    Sense(("play",), "verb.competition", "participate in games or sport", 9),
    Sense(
        ("play",), "verb.creation", "make music on a stringed instrument", 1, (("derived", "player", "noun.person"),)
    ),
    Sense(("player",), "noun.person", "someone who makes music"),
    Sense(("jump",), "verb.motion", "move forward by leaps", 4),
    Sense(("eat",), "verb.consumption", "take in solid food", 4),
    *(
        Sense((name.split(".")[0],), "noun.body", f"the {name.split('.')[0]} of a body")
        for name in dict.fromkeys(BODY_PARTS)
    ),
    Sense(("mouth",), "noun.location", "an opening", 9),
    Sense(("calf",), "noun.animal", "young of cattle", 9),
]


def write_wordnet(folder: Path) -> None:
    """Files as Debian's package has them: without `lexnames`."""
    folder.mkdir(parents=True)
    index: dict[str, dict[str, list[tuple[int, Sense]]]] = {"n": defaultdict(list), "v": defaultdict(list)}
    keys, counts = [], []
    for pos, name in (("n", "noun"), ("v", "verb"), ("a", "adj"), ("r", "adv")):
        senses = [sense for sense in SENSES if sense.lexname.startswith(name + ".")]
        (folder / f"data.{name}").write_text("".join(_lines(senses, pos)))
        (folder / f"{name}.exc").write_text("putting put\n" if name == "verb" else "")
        for sense in senses:
            for word in sense.words:
                index[pos][word.lower()].append((_offsets()[sense], sense))
        lines = []
        for word, found in sorted(index.get(pos, {}).items()):
            found.sort(key=lambda pair: -pair[1].count)
            places = " ".join(f"{offset:08}" for offset, _ in found)
            lines.append(f"{word} {pos} {len(found)} 0 {len(found)} 0 {places}  \n")
            for number, (offset, sense) in enumerate(found, start=1):
                key = f"{word}%{1 if pos == 'n' else 2}:{LEXNAMES.index(sense.lexname):02}:{number:02}::"
                keys.append(f"{key} {offset:08} {number} {sense.count}\n")
                counts.append(f"{key} {number} {sense.count}\n")
        (folder / f"index.{name}").write_text("".join(lines))
    (folder / "index.sense").write_text("".join(sorted(keys)))
    (folder / "cntlist.rev").write_text("".join(sorted(counts)))


def _numbers() -> dict[Sense, int]:
    """The lex_id of each sense: which of its first word's it is."""
    seen: dict[str, int] = defaultdict(int)
    numbers = {}
    for sense in sorted(SENSES, key=lambda sense: -sense.count):
        seen[sense.words[0].lower()] += 1
        numbers[sense] = seen[sense.words[0].lower()]
    return numbers


def _offsets() -> dict[Sense, int]:
    """Where each synset's line begins in its file; their lengths do not depend on the offsets in them."""
    offsets = {}
    for name in ("noun", "verb"):
        place = 0
        for sense in SENSES:
            if sense.lexname.startswith(name + "."):
                offsets[sense] = place
                place += len(_line(sense, "n" if name == "noun" else "v", defaultdict(int)))
    return offsets


def _lines(senses: list[Sense], pos: str) -> list[str]:
    offsets = _offsets() if senses else {}
    return [_line(sense, pos, offsets) for sense in senses]


def _line(sense: Sense, pos: str, offsets: Any) -> str:
    words = " ".join(f"{word} {_numbers()[sense]:x}" for word in sense.words)
    links = []
    for relation, other, lexname in sense.links:
        target = next(s for s in SENSES if s.words[0] == other and s.lexname == lexname)
        ends = "0101" if relation == "derived" else "0000"
        links.append(f"{SYMBOLS[relation]} {offsets[target]:08} n {ends} ")
    frames = "00 " if pos == "v" else ""
    number = f"{LEXNAMES.index(sense.lexname):02}"
    pointers = f"{len(links):03} {''.join(links)}"
    return f"{offsets[sense]:08} {number} {pos} {len(sense.words):02x} {words} {pointers}{frames}| {sense.gloss}  \n"


@pytest.fixture(scope="session")
def wordnet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wordnet") / "dict"
    write_wordnet(folder)
    return folder


@pytest.fixture
def no_wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any WordNet and without a network; returns its cache folder."""
    monkeypatch.setattr("nltk.data.path", [])
    monkeypatch.setattr("nltk.download", lambda *_, **__: False)
    monkeypatch.setattr("alt_fast.corpus.builder.wordnet.SYSTEM_FOLDERS", ())
    monkeypatch.delenv("WNSEARCHDIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wordnet(wordnet_folder: Path, no_wordnet: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("WNSEARCHDIR", str(wordnet_folder))
    return open_wordnet()
