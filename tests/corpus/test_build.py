"""Labels to entities, on a small WordNet."""

import json
from pathlib import Path
from typing import Any

import pytest

from alt_fast.corpus import Corpus, CorpusError
from alt_fast.corpus.__main__ import entities_by_label, main, read_labels
from alt_fast.corpus.build import BODY_PARTS, BuildConfig, build
from alt_fast.corpus.senses import CHOOSERS, _surroundings, choose
from alt_fast.corpus.units import Unit, normalize_label, units_of
from alt_fast.corpus.wordnet import category_of, open_wordnet


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("BaseballPitch", "baseball pitch"),
        ("shooting_ball", "shooting ball"),
        ("petting animal (not cat)", "petting animal"),
        ("hurling (sport)", "hurling sport"),
        ("  Rock, Scissors & Paper!  ", "rock scissors paper"),
        ("massaging person's head", "massaging person's head"),
        ("Übung machen", "übung machen"),
        ("???", ""),
    ],
)
def test_labels_become_text(label: str, text: str) -> None:
    assert normalize_label(label) == text


@pytest.mark.parametrize(
    ("label", "units", "unknown"),
    [
        ("playing guitar", [Unit("play", "v"), Unit("guitar", "n")], []),
        ("playing bass guitar", [Unit("play", "v"), Unit("bass guitar", "n")], []),
        ("playing guitars", [Unit("play", "v"), Unit("guitar", "n")], []),
        ("bowling", [Unit("bowling", "n")], []),
        ("jumping into pool", [Unit("jump", "v"), Unit("pool", "n")], []),
        ("someone krumping", [], ["krumping"]),
        ("massaging person's calf", [Unit("calf", "n")], ["massaging"]),
    ],
)
def test_units(label: str, units: list[Unit], unknown: list[str], wordnet: Any) -> None:
    assert units_of(label, wordnet) == (units, unknown)


def sense_of(word: str, pos: str, label: str, wordnet: Any, chooser: str = "lesk") -> str:
    units, _ = units_of(label, wordnet)
    choice = choose(Unit(word, pos), label, units, wordnet, CHOOSERS[chooser])
    assert choice is not None
    assert list(choice.scores.values()) == sorted(choice.scores.values(), reverse=True)
    return str(wordnet.synset(choice.sense).definition())


def test_senses(wordnet: Any) -> None:
    assert sense_of("play", "v", "playing guitar", wordnet) == "make music on a stringed instrument"
    assert sense_of("play", "v", "playing", wordnet) == "participate in games or sport"  # the frequent one
    assert sense_of("bowling", "n", "bowling", wordnet) == "a game in which balls are rolled at pins"
    assert sense_of("bowling", "n", "bowling in cricket", wordnet) == "(cricket) the delivery of a ball to the batsman"
    assert sense_of("burger", "n", "eating burger", wordnet) == "a sandwich of minced beef"  # no single person
    assert sense_of("play", "v", "play music", wordnet, "plain-lesk") == "make music on a stringed instrument"
    assert choose(Unit("krump", "v"), "krumping", [], wordnet, CHOOSERS["lesk"]) is None


def test_categories(wordnet: Any) -> None:
    def category(name: str) -> str | None:
        return category_of(wordnet.synset(name))

    names = ("guitar.n.01", "pool.n.01", "hand.n.01", "bowling.n.02", "jump.v.01", "burger.n.02", "idea.n.01")
    assert [category(name) for name in names] == ["object", "scene", "body", "motion", "motion", "object", None]


def units_in(corpus: Corpus) -> set[str]:
    return {entity.unit for entity in corpus.entities}


def test_corpus(wordnet: Any) -> None:
    labels = ["playing guitar", "bowling", "jumping into pool", "PlayingGuitar", "krumping"]
    corpus, report = build(labels, wordnet, BuildConfig(reach=1))
    units = units_in(corpus)
    assert {"play", "guitar", "bowling", "jump", "pool"} <= units
    assert {"bass guitar", "acoustic guitar", "fingerboard", "player"} <= units
    assert {name.split(".")[0] for name in BODY_PARTS} <= units
    assert "soundhole" not in units
    assert report.unknown == {"krumping": ["krumping"]}
    assert [choice.unit for choice in report.choices] == ["play", "guitar", "bowling", "jump", "pool"]
    sources = {entity.unit: entity.sources for entity in corpus.entities}
    assert sources["guitar"] == ["sense guitar.n.01", "label playing guitar"]
    assert sources["bass guitar"] == ["sense bass_guitar.n.01", "kind of guitar"]
    assert sources["fingerboard"] == ["sense fingerboard.n.01", "part of guitar"]
    assert sources["player"] == ["sense player.n.01", "named after play"]
    assert entities_by_label(corpus) == {"playing guitar": 2 + 4, "bowling": 1, "jumping into pool": 2}
    assert build(labels, wordnet, BuildConfig(reach=1)) == (corpus, report)


def test_reach_and_size(wordnet: Any) -> None:
    def related(**options: Any) -> set[str]:
        corpus, _ = build(["playing guitar"], wordnet, BuildConfig(body_parts=False, **options))
        return units_in(corpus) - {"play", "guitar"}

    assert related(reach=0) == set()
    assert related(reach=2) == {"bass guitar", "acoustic guitar", "fingerboard", "player", "soundhole"}
    assert related(reach=1, related=1) == {"bass guitar", "player"}  # the most frequent ones


def test_bad_requests(wordnet: Any) -> None:
    with pytest.raises(CorpusError, match="no label has a word in it"):
        build(["", "???"], wordnet, BuildConfig())
    with pytest.raises(CorpusError, match="reach must be >= 0, got -1"):
        BuildConfig(reach=-1)
    with pytest.raises(CorpusError, match="senses must be one of lesk, plain-lesk, got 'magic'"):
        BuildConfig(senses="magic")


def test_wordnet_s_absence_says_all_ways_to_get_it(no_wordnet: Path) -> None:
    with pytest.raises(CorpusError, match=r"apt-get install .*; python -m nltk.downloader wordnet; .*WNSEARCHDIR"):
        open_wordnet()


def test_wordnet_is_copied_once(wordnet: Any, no_wordnet: Path) -> None:
    copy = no_wordnet / "alt_fast/nltk_data/corpora/wordnet"
    assert (copy / "lexnames").read_text().startswith("00\tadj.all\t3\n01\tadj.pert\t3\n")
    before = (copy / "data.noun").stat().st_mtime_ns
    open_wordnet()
    assert (copy / "data.noun").stat().st_mtime_ns == before
    assert [path.name for path in copy.parent.iterdir()] == ["wordnet"]


def test_command_line(wordnet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("playing guitar\nkrumping\n")
    (tmp_path / "b.csv").write_text("id,name\n0,jumping into pool\n")
    out = str(tmp_path / "corpus.json")
    assert main(["build", "--labels", str(tmp_path / "a.txt"), "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "not in WordNet: krumping" in printed
    assert "language model" in printed
    content = json.loads(Path(out).read_text())
    assert content["made_with"] == {"senses": "lesk", "reach": 1, "related": 20, "body_parts": True}
    assert content["labels"] == ["playing guitar", "krumping"]
    assert [choice["unit"] for choice in content["choices"]] == ["play", "guitar"]
    assert set(content["choices"][0]["scores"]) == {"play.v.01", "play.v.02"}
    first = Corpus.load(out)

    more = str(tmp_path / "more.json")
    assert main(["extend", out, "--labels", str(tmp_path / "b.csv"), "--out", more]) == 0
    second = Corpus.load(more)
    assert second.entities[: len(first)] == first.entities
    assert units_in(second) - units_in(first) == {"jump", "pool"}
    capsys.readouterr()

    assert main(["diff", out, more]) == 1
    assert "+ pool: an excavation filled with water" in capsys.readouterr().out.splitlines()
    assert main(["diff", more, out]) == 1
    assert "- pool: an excavation filled with water" in capsys.readouterr().out.splitlines()
    assert main(["diff", out, out]) == 0
    assert capsys.readouterr().out == ""

    assert main(["stats", out]) == 0
    stats = capsys.readouterr().out
    assert f"{len(first)} entities" in stats
    assert "labels with at least 3 entities: 100% of 1" in stats

    assert main(["show", more, "--unit", "guitar", "--category", "object"]) == 0
    shown = capsys.readouterr().out
    assert "object  guitar: a stringed instrument" in shown
    assert "label playing guitar" in shown
    assert "pool" not in shown


def test_labels_of_many_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 YoYo\n")
    assert read_labels(str(tmp_path / "classInd.txt")) == ["apply eye makeup", "yo yo"]
    assert len(read_labels("kinetics400")) == 400
    (tmp_path / "empty.txt").write_text("\n")
    for path, message in [("empty.txt", "names no labels"), ("none.txt", "cannot read"), ("none.csv", "cannot read")]:
        arguments = ["build", "--labels", str(tmp_path / path), "--out", str(tmp_path / "out.json")]
        assert main(arguments) == 1
        assert message in capsys.readouterr().err
    assert main(["stats", str(tmp_path / "none.json")]) == 1
    assert "cannot read corpus" in capsys.readouterr().err


def test_surroundings_do_not_depend_on_the_order_of_relations() -> None:
    """NLTK gives related senses in the order of a set, another one in every process."""

    class Sense:
        def __init__(self, name: str, kinds: list["Sense"]) -> None:
            self._name, self._kinds = name, kinds

        def name(self) -> str:
            return self._name

        definition = name

        def hyponyms(self) -> list["Sense"]:
            return self._kinds

        def nothing(self) -> list[str]:
            return []

        hypernyms = part_meronyms = verb_groups = examples = lemma_names = nothing

    kinds = [Sense(f"kind {letter * 3}", []) for letter in "abcdefghijklmnop"]
    found = [_surroundings.__wrapped__(Sense("root", order)) for order in (kinds, kinds[::-1])]
    assert found[0] == found[1] == {"root", "kind", *(letter * 3 for letter in "abcdefghij")}
