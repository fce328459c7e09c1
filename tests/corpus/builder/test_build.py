"""Labels to entities, on a small WordNet."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alt_fast.corpus import Corpus, CorpusError, Entity
from alt_fast.corpus.__main__ import main
from alt_fast.corpus.builder.build import BODY_PARTS, BuildConfig, build
from alt_fast.corpus.builder.labels import normalize_label
from alt_fast.corpus.builder.rankers import open_chooser
from alt_fast.corpus.builder.senses import Candidate, Question, _near, choose, choose_senses
from alt_fast.corpus.builder.stats import entities_by_label
from alt_fast.corpus.builder.units import Unit, nouns_of, units_of
from alt_fast.corpus.builder.units import noun as whole_noun
from alt_fast.corpus.builder.wordnet import category_of, open_wordnet
from alt_fast.data.annotations import read_names
from alt_fast.errors import ArgumentError


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


def noun(*forms: str) -> Unit:
    return Unit(forms, "n")


def verb(*forms: str) -> Unit:
    return Unit(forms, "v")


@pytest.mark.parametrize(
    ("label", "units", "unknown"),
    [
        ("playing guitar", [verb("play"), noun("guitar")], []),
        ("playing bass guitar", [verb("play"), noun("bass guitar")], []),
        ("playing guitars", [verb("play"), noun("guitar")], []),
        ("bowling", [noun("bowling"), verb("bowl")], []),
        ("bowl", [verb("bowl")], []),  # what it is more often
        ("pool jump", [noun("pool"), verb("jump")], []),
        ("jump pool", [verb("jump"), noun("pool")], []),
        ("jumping into pool", [verb("jump"), noun("pool")], []),
        ("jumping pool", [noun("jumping pool"), verb("jump")], []),
        ("golf putting", [verb("put", "putt")], ["golf"]),
        ("yo yo", [noun("yo-yo")], []),
        ("bee keeping", [noun("beekeeping")], []),
        ("side kick", [], ["side", "kick"]),  # no sidekick
        ("pooljumping", [noun("pool"), verb("jump")], []),
        ("yoyo", [], ["yoyo"]),
        ("poolguitar", [noun("pool"), noun("guitar")], []),
        ("soundholepool", [], ["soundholepool"]),  # too rare to be sure
        ("guitaring", [noun("guitar")], []),
        ("doing guitar", [noun("guitar")], []),
        ("someone krumping", [], ["krumping"]),
        ("playing 'guitar'", [verb("play"), noun("guitar")], []),
        ("massaging person's calf", [noun("calf")], ["massaging"]),
    ],
)
def test_units(label: str, units: list[Unit], unknown: list[str], wordnet: Any) -> None:
    assert units_of(label, wordnet) == (units, unknown)


def test_nouns_of_a_text(wordnet: Any) -> None:
    text = "To jump into the pool with a bass guitar, and bowl!"
    assert nouns_of(text, wordnet) == [noun("pool"), noun("bass guitar")]  # a bowl is more often a verb here
    assert whole_noun("bass guitars", wordnet) == noun("bass guitar")
    assert whole_noun("jump", wordnet) is None
    assert whole_noun("a bass guitar in a pool", wordnet) is None
    assert whole_noun("", wordnet) is None


def chosen(label: str, wordnet: Any, name: str = "lesk") -> dict[str, str]:
    """The description of each unit."""
    choices = choose_senses(label, units_of(label, wordnet)[0], wordnet, open_chooser(name, wordnet))
    for choice in choices.values():
        assert list(choice.scores.values()) == sorted(choice.scores.values(), reverse=True)
    return {unit.text: wordnet.synset(choice.chosen).definition() for unit, choice in choices.items()}


def test_senses(wordnet: Any) -> None:
    assert chosen("playing guitar", wordnet)["play"] == "make music on a stringed instrument"
    assert chosen("playing", wordnet)["play"] == "participate in games or sport"  # the frequent one
    assert chosen("bowling", wordnet)["bowling"] == "a game in which balls are rolled at pins"
    assert chosen("bowling in cricket", wordnet)["bowl"] == "deliver a ball"
    assert chosen("eating burger", wordnet)["burger"] == "a sandwich of minced beef"  # no single person
    assert chosen("golf putting", wordnet)["put"] == "hit a ball lightly, in golf"
    assert chosen("krumping", wordnet) == {}


def test_senses_of_nltk_s_lesk(wordnet: Any) -> None:
    assert chosen("play music", wordnet, "plain-lesk")["play"] == "make music on a stringed instrument"
    assert chosen("play", wordnet, "plain-lesk")["play"] == "participate in games or sport"  # the first of equals
    question = Question("label", noun("phrase"), [Candidate("one"), Candidate("another")])
    assert choose(question, open_chooser("plain-lesk", wordnet)).chosen == "one"


def test_descriptions_without_a_sense_are_weighed_by_their_words(wordnet: Any) -> None:
    question = Question(
        "playing guitar", noun("capo"), [Candidate("the head of a gang"), Candidate("a part of a guitar")]
    )
    assert choose(question, open_chooser("lesk", wordnet)).chosen == "a part of a guitar"


def test_categories(wordnet: Any) -> None:
    def category(name: str) -> str | None:
        return category_of(wordnet.synset(name))

    names = ("guitar.n.01", "pool.n.01", "hand.n.01", "bowling.n.02", "jump.v.01", "burger.n.02", "idea.n.01")
    assert [category(name) for name in names] == ["object", "scene", "body", "motion", "motion", "object", None]


def units_in(corpus: Corpus) -> set[str]:
    return {entity.unit for entity in corpus.entities}


def test_corpus(wordnet: Any) -> None:
    labels = ["playing guitar", "bowling", "jumping into pool", "reading", "PlayingGuitar", "krumping", "???"]
    corpus, report = build(labels, wordnet, BuildConfig(reach=1))
    units = units_in(corpus)
    assert {"play", "guitar", "bowling", "jump", "pool"} <= units
    assert {"bass guitar", "acoustic guitar", "fingerboard", "player"} <= units
    assert {name.split(".")[0] for name in BODY_PARTS} <= units
    assert "soundhole" not in units
    assert report.unknown == {"krumping": ["krumping"]}
    assert report.skipped == {"PlayingGuitar": "repeats another label", "???": "has no word in it"}
    assert [choice.unit for choice in report.choices] == ["play", "guitar", "bowling", "bowl", "jump", "pool", "read"]
    sources = {entity.unit: entity.sources for entity in corpus.entities}
    assert sources["guitar"] == ["sense guitar.n.01", "label playing guitar"]
    assert sources["bass guitar"] == ["sense bass_guitar.n.01", "kind of guitar.n.01"]
    assert sources["fingerboard"] == ["sense fingerboard.n.01", "part of guitar.n.01"]
    assert sources["player"] == ["sense player.n.01", "named after play.v.02"]
    assert sources["spare"] == ["sense spare.n.01", "term of bowling.n.02"]
    assert sources["finger"] == ["sense finger.n.01", "body parts", "in the gloss of guitar.n.01"]
    categories = {entity.unit: entity.category for entity in corpus.entities}
    assert categories["read"] == "motion"  # for WordNet it is cognition; as a label it is to be seen
    assert corpus.notes["labels"] == ["playing guitar", "bowling", "jumping into pool", "reading", "krumping"]
    own = {"playing guitar": 2, "bowling": 2, "jumping into pool": 2, "reading": 1, "krumping": 0}
    assert entities_by_label(corpus) == own | {"playing guitar": 2 + 4 + 1, "bowling": 2 + 1}
    assert build(labels, wordnet, BuildConfig(reach=1)) == (corpus, report)


def test_reach_and_size(wordnet: Any) -> None:
    def related(**options: Any) -> set[str]:
        corpus, _ = build(["playing guitar"], wordnet, BuildConfig(body_parts=False, **options))
        return units_in(corpus) - {"play", "guitar"}

    assert related(reach=0) == {"finger"}
    assert related(reach=0, glosses=False) == set()
    assert related(reach=2) == {"bass guitar", "acoustic guitar", "fingerboard", "player", "soundhole", "finger"}
    assert related(reach=1, related=1) == {"bass guitar", "player", "finger"}  # the most frequent ones


def test_entities_of_every_step_count_for_their_label(wordnet: Any) -> None:
    """Their sources name the step before. What another label's step brought does not."""
    for reach in (0, 1, 2, 3):
        corpus, _ = build(["playing guitar"], wordnet, BuildConfig(body_parts=False, reach=reach))
        assert entities_by_label(corpus) == {"playing guitar": len(corpus)}
    corpus, _ = build(["guitar", "acoustic guitar"], wordnet, BuildConfig(body_parts=False, reach=1, glosses=False))
    assert entities_by_label(corpus) == {"guitar": 4, "acoustic guitar": 2}  # it has a soundhole
    corpus, _ = build(["guitar", "acoustic guitar"], wordnet, BuildConfig(body_parts=False, reach=2, glosses=False))
    assert entities_by_label(corpus) == {"guitar": 5, "acoustic guitar": 2}


def test_bad_requests(wordnet: Any) -> None:
    with pytest.raises(CorpusError, match="no label has a word in it"):
        build(["", "???"], wordnet, BuildConfig())
    with pytest.raises(ArgumentError, match="reach must be >= 0, got -1"):
        BuildConfig(reach=-1)
    for name in ("magic", "encoder:", "lesk:x"):
        with pytest.raises(CorpusError, match=f"senses must be .*, got '{name}'"):
            build(["bowling"], wordnet, BuildConfig(senses=name))


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


def test_an_incomplete_wordnet_is_none(
    wordnet_folder: Path, no_wordnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is: it is named, never kept, and made good once a whole one is there."""
    source, copy = tmp_path / "dict", no_wordnet / "alt_fast/nltk_data/corpora/wordnet"
    shutil.copytree(wordnet_folder, source)
    (source / "index.sense").unlink()
    shutil.copytree(source, tmp_path / "nltk/corpora/wordnet")
    (tmp_path / "zipped/corpora").mkdir(parents=True)
    (tmp_path / "zipped/corpora/wordnet.zip").write_text("cut off")
    monkeypatch.setenv("WNSEARCHDIR", str(source))
    for folder in ("zipped", "nltk"):
        monkeypatch.setattr("nltk.data.path", [str(tmp_path / folder)])
        with pytest.raises(CorpusError, match=r"apt-get install .*; .*dict lacks index.sense$"):
            open_wordnet()
    assert not copy.exists()
    shutil.copytree(source, copy)
    shutil.copy(wordnet_folder / "index.sense", source)
    assert open_wordnet().lemma_from_key("eat%2:34:01::").name() == "eat"
    (copy / "lexnames").unlink()
    assert open_wordnet().synset("eat.v.01").lexname() == "verb.consumption"


def test_a_wordnet_that_cannot_be_kept(wordnet_folder: Path, no_wordnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(wordnet_folder))
    no_wordnet.write_text("no folder")
    with pytest.raises(CorpusError, match=r"cannot store WordNet: .*cache.*XDG_CACHE_HOME names another place"):
        open_wordnet()
    no_wordnet.unlink()
    monkeypatch.setattr("shutil.copyfile", full_disk)
    with pytest.raises(CorpusError, match="cannot store WordNet: .*No space left"):
        open_wordnet()
    assert list((no_wordnet / "alt_fast/nltk_data/corpora").iterdir()) == []


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_command_line(wordnet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("playing guitar\nkrumping\nPlayingGuitar\n\u7403\n")
    (tmp_path / "b.csv").write_text("id,name\n0,jumping into pool\n")
    out = str(tmp_path / "corpus.json")
    assert main(["build", "--labels", str(tmp_path / "a.txt"), "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "left out: label 'PlayingGuitar' repeats another label" in printed
    assert "not described, since WordNet does not have them: krumping, \u7403" in printed
    assert "labels without an entity: krumping, \u7403" in printed
    assert "--llm openai adds them" in printed
    content = json.loads(Path(out).read_text())
    made = {"senses": "lesk", "reach": 1, "related": 20, "glosses": True, "body_parts": True, "language_model": None}
    assert content["made_with"] == made | {"things_as_actions": False}
    assert content["labels"] == ["playing guitar", "krumping", "\u7403"]
    assert [choice["unit"] for choice in content["choices"]] == ["play", "guitar"]
    assert set(content["choices"][0]["scores"]) == {"play.v.01", "play.v.02"}
    first = Corpus.load(out)
    assert main(["build", "--labels", "pool", "--reach", "0", "--related", "2", "--out", out]) == 2
    assert "--related has no effect on --reach 0" in capsys.readouterr().err

    more = str(tmp_path / "more.json")
    assert main(["extend", out, "--labels", str(tmp_path / "b.csv"), "--out", more]) == 0
    second = Corpus.load(more)
    assert second.entities[: len(first)] == first.entities
    assert units_in(second) - units_in(first) == {"jump", "pool"}
    assert second.notes["labels"] == [*first.notes["labels"], "jumping into pool"]
    assert [choice["unit"] for choice in second.notes["choices"]] == ["play", "guitar", "jump", "pool"]
    capsys.readouterr()

    wide, wider = str(tmp_path / "wide.json"), str(tmp_path / "wider.json")
    assert main(["build", "--labels", "playing guitar", "--reach", "2", "--out", wide]) == 0
    assert main(["extend", wide, "--labels", "pool", "--out", wider]) == 0
    counts = [entities_by_label(Corpus.load(path))["playing guitar"] for path in (wide, wider)]
    assert counts[0] == counts[1] > entities_by_label(first)["playing guitar"]
    capsys.readouterr()

    assert main(["diff", out, more]) == 1
    assert "+ pool: an excavation filled with water" in capsys.readouterr().out.splitlines()
    assert main(["diff", more, out]) == 1
    assert "- pool: an excavation filled with water" in capsys.readouterr().out.splitlines()
    assert main(["diff", out, out]) == 0
    assert capsys.readouterr().out == ""

    assert main(["stats", out, "--by-label"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{len(first)} entities"
    assert "labels with at least 1, 3, 8 entities: 33%, 33%, 0% of 3" in lines
    assert [line.split() for line in lines[-3:]] == [["0", "krumping"], ["0", "\u7403"], ["7", "playing", "guitar"]]

    assert main(["show", more, "--unit", "guitar", "--category", "object"]) == 0
    shown = capsys.readouterr().out
    assert "object  guitar: a stringed instrument" in shown
    assert "label playing guitar" in shown
    assert "pool" not in shown
    assert main(["show", more, "--label", "jumping into pool"]) == 0
    shown = capsys.readouterr().out
    assert [line.split(":")[0].split()[1] for line in shown.splitlines()[::2]] == ["jump", "pool"]
    for label in ("JumpingIntoPool", "Jumping into pool", "jumping_into_pool"):  # as `build` takes them
        assert main(["show", more, "--label", label]) == 0
        assert capsys.readouterr().out == shown
    Corpus((Entity("kite", "it flies", "object", ["label FlyingKite"]),)).save(tmp_path / "mine.json")
    assert main(["show", str(tmp_path / "mine.json"), "--label", "FlyingKite"]) == 0
    assert capsys.readouterr().out == "object  kite: it flies\n        label FlyingKite\n"
    assert main(["show", more, "--label", "Krumping", "--category", "body"]) == 1
    assert "the corpus has no entity of label 'Krumping' and category 'body'" in capsys.readouterr().err
    assert main(["show", more, "--unit", "gitar"]) == 1
    assert "the corpus has no entity of unit 'gitar'" in capsys.readouterr().err


def test_where_a_corpus_goes_is_looked_at_before_the_work(
    wordnet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, made = tmp_path / "a.csv", tmp_path / "new/folder/corpus.json"
    labels.write_text("id,name\n0,playing guitar\n")
    build_it, extend_it = ["build", "--labels", str(labels)], ["extend", str(made), "--labels", str(labels)]
    assert main([*build_it, "--out", str(made)]) == 0
    before = made.read_bytes()
    assert main([*build_it, "--out", str(made)]) == 0  # the same again
    monkeypatch.setattr("alt_fast.corpus.builder.wordnet.open_wordnet", None)
    for command, out in (
        (build_it, labels),
        (extend_it, labels),
        (extend_it, tmp_path / "new/../new/folder" / made.name),
    ):
        assert main([*command, "--out", str(out)]) == 2
        assert "which is to be read: choose another" in capsys.readouterr().err
    for command in (build_it, extend_it):
        assert main([*command, "--out", str(labels / "corpus.json")]) == 1
        assert "cannot make folder" in capsys.readouterr().err
    assert labels.read_text() == "id,name\n0,playing guitar\n"
    assert made.read_bytes() == before


def test_the_paper_s_steps_alone(wordnet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What labels name, and body parts: nothing related, nothing from glosses."""
    command = ["build", "--labels", "playing guitar", "--out", str(tmp_path / "c.json"), "--paper"]
    assert main(command) == 0
    corpus = Corpus.load(tmp_path / "c.json")
    assert {entity.unit for entity in corpus.entities if "body parts" not in entity.sources} == {"play", "guitar"}
    assert len(corpus) == len(BODY_PARTS) + 2
    assert {source.split(" ")[0] for entity in corpus.entities for source in entity.sources} == {
        "sense",
        "label",
        "body",
    }
    for option in (["--reach", "0"], ["--related", "20"], ["--no-glosses"]):
        assert main([*command, *option]) == 2
        assert "have no effect on --paper" in capsys.readouterr().err


def test_labels_of_many_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 YoYo\n")
    assert read_names(str(tmp_path / "classInd.txt")) == ["apply eye makeup", "yo yo"]
    assert len(read_names("kinetics400")) == 400
    (tmp_path / "empty.txt").write_text("\n")
    for path, message in [("empty.txt", "names no labels"), ("none.txt", "cannot read"), ("none.csv", "cannot read")]:
        arguments = ["build", "--labels", str(tmp_path / path), "--out", str(tmp_path / "out.json")]
        assert main(arguments) == 1
        assert message in capsys.readouterr().err
    assert main(["stats", str(tmp_path / "none.json")]) == 1
    assert "cannot read corpus" in capsys.readouterr().err


def test_neighbours_do_not_depend_on_the_order_of_relations() -> None:
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

        hypernyms = part_meronyms = verb_groups = lemmas = lemma_names = nothing

    kinds = [Sense(f"kind {letter * 3}", []) for letter in "abcdefghijklmnop"]
    found = [_near.__wrapped__(Sense("root", order)) for order in (kinds, kinds[::-1])]
    assert found[0] == found[1] == {"kind", *(letter * 3 for letter in "abcdefghij")}
