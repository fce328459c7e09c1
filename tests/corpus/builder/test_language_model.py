"""Asking a language model: the cache, faults of the endpoint, and what is taken from its answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alt_fast.corpus import CorpusError
from alt_fast.corpus.builder.language_model import (
    MAX_ANSWER,
    MAX_DESCRIPTION,
    MAX_UNITS,
    LanguageModel,
    Settings,
    parse_descriptions,
    parse_units,
)
from tests.corpus.builder.endpoint import Endpoint, Fault


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint(lambda prompt: f"answer to {prompt}") as running:
        yield running


def model_at(url: str | None, cache: Path, **options: Any) -> LanguageModel:
    settings: dict[str, Any] = {"api_key": "key", "retries": 2, "parallel": 2}
    return LanguageModel(Settings("m", cache, url, **settings | options))


def test_answers_are_kept_and_not_asked_for_again(endpoint: Endpoint, tmp_path: Path) -> None:
    model = model_at(endpoint.url, tmp_path)
    assert model.ask(["a", "b", "a"], "test") == ["answer to a", "answer to b", "answer to a"]
    assert sorted(endpoint.prompts) == ["a", "b"]
    assert endpoint.keys == {"Bearer key"}
    assert endpoint.requests[0]["model"] == "m"
    assert endpoint.requests[0]["temperature"] == 0
    offline = model_at("http://127.0.0.1:1/v1", tmp_path, api_key=None)
    assert offline.ask(["b", "a"], "test") == ["answer to b", "answer to a"]
    other = LanguageModel(Settings("other", tmp_path, endpoint.url, "key"))
    other.ask(["a"], "test")
    assert len(endpoint.prompts) == 3  # another model's answers are others


@pytest.mark.parametrize("fault", [429, 500, 503, "drop", "slow"])
def test_passing_faults_are_waited_out(fault: Fault, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.faults = [fault, fault]
    assert model_at(endpoint.url, tmp_path, timeout=0.5).ask(["a"], "test") == ["answer to a"]
    assert endpoint.prompts == ["a"] * 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (401, "failed: .*fault 401"),
        (429, "failed: .*fault 429"),
        (404, "failed: .*fault 404"),
        ("slow", "failed: Request timed out"),
        ("drop", "failed: Connection error"),
        ("html", "not OpenAI's chat completions protocol"),
        ("shape", "not OpenAI's chat completions protocol"),
    ],
)
def test_lasting_faults_keep_what_came(fault: Fault, message: str, endpoint: Endpoint, tmp_path: Path) -> None:
    model = model_at(endpoint.url, tmp_path, timeout=0.5, parallel=1)
    endpoint.faults = [None, *[fault] * 6]  # a third question may be on its way
    with pytest.raises(CorpusError, match=f"{message}.*; 1 of 3 answers are in .*goes on from there"):
        model.ask(["a", "b", "c"], "test")
    endpoint.faults, endpoint.prompts = [], []
    assert model.ask(["a", "b", "c"], "test")[0] == "answer to a"
    assert endpoint.prompts == ["b", "c"]


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_MODEL", raising=False)
    with pytest.raises(CorpusError, match="OPENAI_MODEL is not set"):
        Settings.from_environment()
    with pytest.raises(CorpusError, match="OPENAI_API_KEY is not set"):
        model_at(None, tmp_path, api_key=None).ask(["a"], "test")
    with pytest.raises(CorpusError, match="--llm-timeout must be > 0, got 0"):
        Settings("m", timeout=0)
    with pytest.raises(CorpusError, match="--llm-parallel must be >= 1, got 0"):
        Settings("m", parallel=0)
    assert "secret" not in repr(Settings("m", api_key="secret"))
    monkeypatch.setattr("builtins.__import__", no_openai)
    with pytest.raises(CorpusError, match=r"pip install 'alt-fast\[corpus\]'"):
        model_at(None, tmp_path).ask(["a"], "test")


real_import = __import__


def no_openai(name: str, *rest: Any) -> Any:
    if name == "openai":
        raise ImportError(name)
    return real_import(name, *rest)


def test_damaged_answers_are_named(endpoint: Endpoint, tmp_path: Path) -> None:
    model = model_at(endpoint.url, tmp_path)
    model.ask(["a"], "test")
    (file,) = tmp_path.iterdir()
    file.write_text("{")
    with pytest.raises(CorpusError, match=f"{file.name} is damaged .*delete it to ask again"):
        model.ask(["a"], "test")


def test_long_and_empty_answers(tmp_path: Path) -> None:
    with Endpoint(lambda prompt: "x" * 10_000 if prompt == "long" else None) as endpoint:
        assert model_at(endpoint.url, tmp_path).ask(["long", "empty"], "test") == ["x" * MAX_ANSWER, ""]


@pytest.mark.parametrize(
    ("answer", "units"),
    [
        ("1. Bat\n2. Baseball glove\n3. The ball", ["bat", "baseball glove", "ball"]),
        ("- **Bat**: a wooden stick\n- Ball - to be thrown\n* Cap (optional)", ["bat", "ball", "cap"]),
        ("Objects: bat, ball, and a glove.", ["bat", "ball", "glove"]),
        ("Sure! Here are the objects:\n\u2022 bat\n\u2022 catcher\u2019s mitt", ["bat", "catcher's mitt"]),
        ("bat, bat; Bat", ["bat"]),
        ("I'm sorry, but I can't help with that.", []),
        ("As an AI language model, I have no body: head, hands", []),
        ("\u0431\u0438\u0442\u0430, \u043c\u044f\u0447\nbat", ["bat"]),
        ("```python\nimport os\n```\nbat", ["bat"]),
        (
            "Jalape\u00f1o, knife, cafe\u0301, sm\u00f8rrebr\u00f8d",
            ["jalapeno", "knife", "cafe", "sm\u00f8rrebr\u00f8d"],
        ),
        ("- \U0001f3cf Bat\n\u25ba ball", ["bat", "ball"]),
        ("<think>\nIt may be a dog, or a cat. I can't tell.\n</think>\n\n- bat\n- ball", ["bat", "ball"]),
        ("bat\n<think>a dog</think>\nball\n<THINKING>\na cat\n</THINKING>", ["bat", "ball"]),
        ("a dog\na cat\n</think>\nbat", ["bat"]),
        ("<think>\na dog\na cat", []),
        ("<script>alert(1)</script>, https://example.com/bat, rm -rf /, $(reboot), {bat}", []),
        ("a thing that is used by somebody to hit balls far away", []),
        ("", []),
        ("\x00\x1b[31m\n42\n3.14", []),
    ],
)
def test_units_of_answers(answer: str, units: list[str]) -> None:
    assert parse_units(answer) == units


def test_units_are_limited() -> None:
    names = [a + b for a in "abcdefgh" for b in "abcdefgh"]
    assert parse_units(", ".join(names)) == names[:MAX_UNITS]
    assert parse_units("incomprehensibilities of incomprehensibilities") == []


@pytest.mark.parametrize(
    ("answer", "descriptions"),
    [
        ("A racket is used to hit a ball. It has strings.", ["A racket is used to hit a ball"]),
        ("Here you go:\n1. A frame with strings.\n2. A loud noise.", ["A frame with strings", "A loud noise"]),
        ("A frame with strings.\nA frame with strings.", ["A frame with strings"]),
        ("I cannot explain that.", []),
        ("n/a", []),
        ("\u7403\u62cd\u662f\u4e00\u79cd", []),
        ("A person sits in a caf\u00e9", ["A person sits in a cafe"]),
        ("\u00c6r\u00f8 \u00f8l", ["\u00c6r\u00f8 \u00f8l"]),
        ("<think>It has strings.\nMaybe.</think>A frame with strings.", ["A frame with strings"]),
        ("<think>It has strings.", []),
        ("A \u2018racket\u2019 <b>with</b> strings", ["A 'racket' with strings"]),
    ],
)
def test_descriptions_of_answers(answer: str, descriptions: list[str]) -> None:
    assert parse_descriptions(answer) == descriptions


def test_descriptions_are_cut_at_a_word() -> None:
    (description,) = parse_descriptions("frame " * 100)
    assert MAX_DESCRIPTION - 10 < len(description) <= MAX_DESCRIPTION
    assert description.endswith(" frame")
