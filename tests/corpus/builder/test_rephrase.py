"""Class names described in a sentence, by a small WordNet and by an endpoint of our own."""

from pathlib import Path
from typing import Any

import pytest

from alt_fast.corpus.__main__ import main
from alt_fast.corpus.builder.implied import PHRASE_PROMPTS
from alt_fast.corpus.builder.rephrase import rephrase
from alt_fast.data.texts import read_texts
from tests.corpus.builder.endpoint import Endpoint

LABELS = ["PlayingGuitar", "playing guitar", "krumping", "eating burger (not cheese)"]

GUITAR = "make music on a stringed instrument; a stringed instrument that you play with your fingers"


def test_glosses_in_their_senses_describe_a_name(wordnet: Any) -> None:
    done = rephrase(LABELS, wordnet)
    assert done.texts == {
        "PlayingGuitar": f"playing guitar: {GUITAR}",
        "krumping": "krumping",
        "eating burger (not cheese)": "eating burger (not cheese): take in solid food; a sandwich of minced beef",
    }
    assert done.plain == ["krumping"]
    assert done.repeated == ["playing guitar"]


def test_the_command_writes_a_row_a_class(wordnet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "classes.txt").write_text("".join(f"{label}\n" for label in LABELS))
    command = ["rephrase", "--labels", str(tmp_path / "classes.txt"), "--out"]
    assert main([*command, str(tmp_path / "texts.csv")]) == 0
    printed = capsys.readouterr().out
    assert f"2 of 3 classes described in {tmp_path / 'texts.csv'}\n" in printed
    assert "left out: label 'playing guitar' repeats another label\n" in printed
    assert "not described, so that the name stays: krumping\n" in printed
    assert dict(read_texts(tmp_path / "texts.csv")) == rephrase(LABELS, wordnet).texts
    assert main([*command, str(tmp_path / "new/again.csv")]) == 0
    assert (tmp_path / "new/again.csv").read_bytes() == (tmp_path / "texts.csv").read_bytes()
    assert main([*command, str(tmp_path / "other.csv"), "--senses", "magic"]) == 1
    assert "senses must be" in capsys.readouterr().err


def test_texts_replace_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the labels, nor texts that may have been edited."""
    monkeypatch.setattr("alt_fast.corpus.builder.wordnet.open_wordnet", None)
    (tmp_path / "texts.csv").write_text("name,text\nsurfing,my own words\n")
    (tmp_path / "classes.csv").write_text("id,name\n0,surfing\n")
    command = ["rephrase", "--labels", str(tmp_path / "classes.csv"), "--out"]
    for name, status, message in (
        ("classes.csv", 2, "classes.csv, which is to be read: choose another"),
        ("texts.csv", 1, "texts.csv is there already: remove it, or choose another --out"),
        ("texts.csv/texts.csv", 1, "cannot make folder"),
    ):
        assert main([*command, str(tmp_path / name)]) == status
        assert message in capsys.readouterr().err
    assert (tmp_path / "texts.csv").read_text() == "name,text\nsurfing,my own words\n"
    assert (tmp_path / "classes.csv").read_text() == "id,name\n0,surfing\n"


def look(prompt: str) -> str:
    return "I'm sorry, I cannot." if "krumping" in prompt else "A person holds a thing.\n- It is theirs."


def test_a_language_model_says_what_actions_look_like(
    no_wordnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without any WordNet; its answers are kept, so that a rerun asks nothing and writes the same."""
    command = ["rephrase", "--labels", *LABELS, "--llm", "openai", "--out"]
    assert main([*command, str(tmp_path / "texts.csv")]) == 1
    assert "OPENAI_MODEL is not set" in capsys.readouterr().err
    monkeypatch.setenv("OPENAI_MODEL", "m")
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with Endpoint(look) as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        assert main([*command, str(tmp_path / "texts.csv")]) == 0
        assert "not described, so that the name stays: krumping\n" in capsys.readouterr().out
        names = ("playing guitar", "krumping", "eating burger")
        assert set(endpoint.prompts) >= {PHRASE_PROMPTS[0].format(phrase=name) for name in names}
        assert len(endpoint.prompts) == 4  # of nothing usable it is asked once more
    assert dict(read_texts(tmp_path / "texts.csv")) == {
        "PlayingGuitar": "playing guitar: A person holds a thing",
        "krumping": "krumping",
        "eating burger (not cheese)": "eating burger (not cheese): A person holds a thing",
    }
    assert main([*command, str(tmp_path / "again.csv")]) == 0  # nobody answers any more
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "texts.csv").read_bytes()
    assert main([*command, str(tmp_path / "other.csv"), "--senses", "lesk"]) == 2
    assert "--senses has no effect on rephrase --llm openai" in capsys.readouterr().err
    assert main(["rephrase", "--labels", "x", "--out", str(tmp_path / "o.csv"), "--llm-timeout", "3"]) == 2
    assert "--llm-timeout has no effect without --llm openai" in capsys.readouterr().err
