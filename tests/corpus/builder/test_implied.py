"""Corpora with a language model: implied units, descriptions of phrases, and what a rerun costs."""

from pathlib import Path
from typing import Any

import pytest

from alt_fast.corpus import Corpus, Entity
from alt_fast.corpus.__main__ import main
from alt_fast.corpus.builder.build import BuildConfig, build
from alt_fast.corpus.builder.implied import AGAIN
from alt_fast.corpus.builder.language_model import LanguageModel, Settings
from alt_fast.corpus.builder.stats import entities_by_label
from tests.corpus.builder.endpoint import Endpoint

ANSWERS = {
    "objects of an action playing guitar?": "1. Guitar\n2. Capo\n3. Finger picks",
    "body parts of an action playing guitar?": "fingers, bowl",
    "scenes of an action playing guitar?": "Stage light, pool",
    "roles of an action playing guitar?": "guitar player",
    "what an action playing guitar looks like.": "A player plucks the strings of a guitar.",
    "explanations for djembe.": "A goblet drum",
    "explain playing guitar in one sentence.": "It is making noise.",
    "explanations for capo.": "- the head of a gang\n- a clamp across the fingerboard of a guitar",
    "explain capo in one sentence.": "I'm sorry, I can't.",
    "explain finger picks in one sentence.": "Small plates to pluck a guitar with.",
    "what an action krumping looks like.": "A dancer stomps and swings the arms.",
}


def answer(prompt: str) -> str:
    asked = prompt.removesuffix(" List them concisely.")
    return next((text for end, text in ANSWERS.items() if asked.endswith(end)), "")


def built(endpoint: Endpoint, cache: Path, wordnet: Any, labels: list[str], **options: Any) -> tuple[Corpus, Any]:
    model = LanguageModel(Settings("m", cache, endpoint.url, "key"))
    return build(labels, wordnet, BuildConfig(body_parts=False, reach=0, glosses=False, **options), model)


def test_corpus_with_a_language_model(wordnet: Any, tmp_path: Path) -> None:
    with Endpoint(answer) as endpoint:
        corpus, report = built(endpoint, tmp_path, wordnet, ["playing guitar", "krumping", "zumba", "playing djembe"])
    entities = {entity.unit: entity for entity in corpus.entities}
    assert entities["djembe"].category == "object"
    assert entities["capo"] == Entity(
        "capo",
        "a clamp across the fingerboard of a guitar",  # not the head of a gang
        "object",
        ["label playing guitar", "language model, objects of playing guitar"],
    )
    assert entities["playing guitar"].description == "A player plucks the strings of a guitar"
    assert entities["playing guitar"].category == "motion"
    assert entities["krumping"].description == "A dancer stomps and swings the arms"
    assert entities["finger"].sources[:2] == ["sense finger.n.01", "label playing guitar"]  # WordNet describes words
    assert entities["pool"].category == "scene"
    assert entities["bowl"].category == "object"  # WordNet knows better than the question
    assert "stage light" not in entities  # nothing describes it
    assert report.unknown == {"zumba": ["zumba"]}  # asked about, and no answer
    assert [prompt for prompt in report.unusable if "stage light" in prompt] == [
        "Concisely list potential explanations for stage light.",
        "Concisely explain stage light in one sentence.",
    ]
    assert entities_by_label(corpus) == {"playing guitar": 8, "krumping": 1, "zumba": 0, "playing djembe": 2}
    assert corpus.notes["made_with"]["language_model"] == "m"
    capo = next(choice for choice in corpus.notes["choices"] if choice["unit"] == "capo")
    assert list(capo["scores"]) == ["a clamp across the fingerboard of a guitar", "the head of a gang"]


def test_prompts_are_the_paper_s_and_asked_once_more_where_nothing_comes(wordnet: Any, tmp_path: Path) -> None:
    with Endpoint(answer) as endpoint:
        built(endpoint, tmp_path, wordnet, ["playing guitar", "krumping"])
    assert "What are identifying body parts of an action playing guitar? List them concisely." in endpoint.prompts
    assert "Concisely describe what an action playing guitar looks like." in endpoint.prompts
    assert "Concisely list potential explanations for capo." in endpoint.prompts
    assert "Concisely explain capo in one sentence." + AGAIN in endpoint.prompts
    assert "Concisely list potential explanations for playing guitar." in endpoint.prompts
    assert "Concisely describe what an action capo looks like." not in endpoint.prompts  # a capo is no action
    assert len(endpoint.prompts) == len(set(endpoint.prompts))
    with Endpoint(answer) as endpoint:
        built(endpoint, tmp_path / "paper", wordnet, ["playing guitar"], things_as_actions=True)
    for phrase in ("playing guitar", "capo"):  # to the letter
        assert f"Concisely describe what an action {phrase} looks like." in endpoint.prompts
        assert f"Concisely list potential explanations for {phrase}." in endpoint.prompts
        assert f"Concisely explain {phrase} in one sentence." in endpoint.prompts


def test_a_rerun_is_free_exact_and_offline(wordnet: Any, tmp_path: Path) -> None:
    with Endpoint(answer) as endpoint:
        first = built(endpoint, tmp_path, wordnet, ["playing guitar"])
        asked = len(endpoint.prompts)
        assert built(endpoint, tmp_path, wordnet, ["playing guitar"]) == first
        assert len(endpoint.prompts) == asked
        built(endpoint, tmp_path, wordnet, ["playing guitar", "krumping"])  # only what is new
        assert {prompt for prompt in endpoint.prompts[asked:] if "krumping" not in prompt} == set()
    assert built(endpoint, tmp_path, wordnet, ["playing guitar"]) == first


def test_command_line(
    wordnet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.txt").write_text("playing guitar\nkrumping\n")
    command = ["build", "--labels", str(tmp_path / "labels.txt"), "--out", str(tmp_path / "c.json"), "--llm", "openai"]
    assert main([*command[:-2], "--llm-parallel", "1"]) == 2
    assert "--llm-parallel has no effect without --llm openai" in capsys.readouterr().err
    monkeypatch.delenv("OPENAI_MODEL", raising=False)
    assert main(command) == 1
    assert "OPENAI_MODEL is not set" in capsys.readouterr().err
    monkeypatch.setenv("OPENAI_MODEL", "m")
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with Endpoint(answer, faults=[None, None, 401, 401]) as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        assert main([*command, "--llm-parallel", "1"]) == 1
        assert "2 of 8 answers are in" in capsys.readouterr().err
        assert not (tmp_path / "c.json").exists()
        endpoint.faults, endpoint.prompts = [], []
        assert main(command) == 0
        assert len(endpoint.prompts) == len(set(endpoint.prompts))
        assert "What are identifying objects of an action playing guitar? List them concisely." not in endpoint.prompts
    printed = capsys.readouterr().out
    assert (
        "the language model had no usable answer to: Concisely list potential explanations for stage light." in printed
    )
    assert "left out: phrases" not in printed


def test_interrupting(
    wordnet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("alt_fast.corpus.builder.build.build", interrupt)
    (tmp_path / "labels.txt").write_text("playing guitar\n")
    assert main(["build", "--labels", str(tmp_path / "labels.txt"), "--out", str(tmp_path / "c.json")]) == 130
    assert "interrupted" in capsys.readouterr().err
