"""Questions to a language model behind any OpenAI-compatible endpoint, every answer kept on disk.

Needs alt-fast[corpus]. Answers are data: they are shortened, filtered and stored, and nothing in them is ever run or
followed.
"""

import hashlib
import json
import os
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from alt_fast.corpus import CorpusError
from alt_fast.files import cache_folder, make_folder, write_text
from alt_fast.progress import Progress

MAX_ANSWER = 2000  # characters kept of an answer
MAX_DESCRIPTION = 200
MAX_UNIT = 40
MAX_UNIT_WORDS = 4
MAX_UNITS = 12  # of one answer


@dataclass(frozen=True)
class Settings:
    """Who is asked, and how.

    Args:
        model: name of the model at the endpoint.
        cache: folder of answers, by content hash.
        base_url: the endpoint; None for OpenAI's own.
        api_key: its key. Neither is needed where every answer is in the cache.
        timeout: seconds for one answer.
        retries: of a request that timed out, came too fast or failed at the server, after longer and longer waits.
        parallel: requests at once.
    """

    model: str
    cache: Path = field(default_factory=lambda: cache_folder("language_model"))
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    retries: int = 10
    parallel: int = 8

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise CorpusError(f"--llm-timeout must be > 0, got {self.timeout}")
        if self.parallel < 1:
            raise CorpusError(f"--llm-parallel must be >= 1, got {self.parallel}")

    @staticmethod
    def from_environment(timeout: float = 60.0, parallel: int = 8) -> "Settings":
        """OPENAI_MODEL, OPENAI_BASE_URL and OPENAI_API_KEY. Raises CorpusError when no model is named."""
        model = os.environ.get("OPENAI_MODEL")
        if not model:
            raise CorpusError(
                "--llm openai asks the model that OPENAI_MODEL names, at OPENAI_BASE_URL (OpenAI's own if unset) with "
                "OPENAI_API_KEY; OPENAI_MODEL is not set"
            )
        url, key = os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
        return Settings(model, base_url=url, api_key=key, timeout=timeout, parallel=parallel)


@dataclass(frozen=True)
class LanguageModel:
    """Answers from the cache, else from the endpoint."""

    settings: Settings

    def ask(self, prompts: Sequence[str], what: str) -> list[str]:
        """The answers, in the order of the prompts. what: for the progress bar.

        Raises CorpusError when the endpoint fails for good. Answers that came until then are in the cache, so the same
        call goes on from there.
        """
        unique = list(dict.fromkeys(prompts))
        missing = [prompt for prompt in unique if not self._file(prompt).is_file()]
        pool = ThreadPoolExecutor(self.settings.parallel)
        try:
            list(Progress(pool.map(self._fetch, missing), what, "answer", len(missing)))
        except CorpusError as e:
            kept = sum(self._file(prompt).is_file() for prompt in unique)
            raise CorpusError(
                f"{e}; {kept} of {len(unique)} answers are in {self.settings.cache}: "
                "the same command goes on from there"
            ) from e
        finally:
            pool.shutdown(cancel_futures=True)
        return [self._cached(prompt) for prompt in prompts]

    def _request(self, prompt: str) -> dict[str, Any]:
        return {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": 300,
        }

    def _file(self, prompt: str) -> Path:
        request = json.dumps(self._request(prompt), sort_keys=True)
        return self.settings.cache / f"{hashlib.sha256(request.encode()).hexdigest()}.json"

    def _cached(self, prompt: str) -> str:
        path = self._file(prompt)
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["answer"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise CorpusError(f"{path} is damaged ({e}); delete it to ask again") from e

    def _fetch(self, prompt: str) -> None:
        client = self._client
        import openai

        request = self._request(prompt)
        try:
            completion = client.chat.completions.create(**request)
            answer = completion.choices[0].message.content
        except openai.OpenAIError as e:
            raise CorpusError(f"the language model at {client.base_url} failed: {e}") from e
        except (AttributeError, IndexError, TypeError, ValueError) as e:
            raise CorpusError(f"what {client.base_url} answers is not OpenAI's chat completions protocol ({e})") from e
        content = json.dumps({"request": request, "answer": (answer or "")[:MAX_ANSWER]}, ensure_ascii=False, indent=1)
        path = self._file(prompt)
        make_folder(path.parent)
        write_text(path, content)

    @cached_property
    def _client(self) -> Any:
        try:
            import openai
        except ImportError as e:
            raise CorpusError("--llm openai needs more packages: pip install 'alt-fast[corpus]'") from e
        if self.settings.api_key is None:
            raise CorpusError("the language model has to be asked, and OPENAI_API_KEY is not set")
        return openai.OpenAI(
            base_url=self.settings.base_url,
            api_key=self.settings.api_key,
            timeout=self.settings.timeout,
            max_retries=self.settings.retries,
        )


_BULLET = re.compile(r"^\s*(?:[-*]|\(?\d{1,2}[.)]|[a-z][.)])\s+")
_REFUSAL = re.compile(
    r"\b(as an ai|i'?m sorry|i apologi[sz]e|i can(?:no|')t|i am (?:not able|unable))\b", re.IGNORECASE
)
_LETTER = r"[^\W\d_]"  # a Latin one, in what `_lines` leaves
_UNIT = re.compile(rf"{_LETTER}(?:{_LETTER}|[' -])*{_LETTER}")
_PUNCTUATION = str.maketrans("\u2018\u2019\u02bb\u02bc\u201c\u201d\u2013\u2014\u2022\u2044", "''''\"\"---/")
_REASONING = re.compile(r"<(think|thinking|thought|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_REASONING_BEFORE = re.compile(r"\A.*</(?:think|thinking|thought|reasoning)>", re.DOTALL | re.IGNORECASE)
"""What a model says to itself. Its end may be cut off, and its beginning in the prompt that a server made."""


def parse_units(answer: str) -> list[str]:
    """The words and short phrases that an answer lists, in lower case; what else it says is left out."""
    units = []
    for line in _lines(answer):
        before, _, after = line.partition(":")  # "1. bat: to hit with", or "Objects: bat, ball"
        listed = _BULLET.sub("", before) if _BULLET.match(line) else after or before
        for item in re.split(r"[,;]|\band\b", listed):
            text = re.sub(r"\s\(.*|\s-\s.*", "", item).strip(" .!?\"'").lower()
            text = re.sub(r"^(?:the|a|an|or|their|his|her)\s+", "", text)
            if _UNIT.fullmatch(text) and len(text) <= MAX_UNIT and len(text.split()) <= MAX_UNIT_WORDS:
                units.append(text)
    return list(dict.fromkeys(units))[:MAX_UNITS]


def parse_descriptions(answer: str) -> list[str]:
    """What an answer's sentences or list items say something is, each cut to MAX_DESCRIPTION characters."""
    found = []
    for line in _lines(answer):
        first = re.split(r"(?<=[.!?])\s+(?=[A-Z])", _BULLET.sub("", line))[0]
        sentence = textwrap.shorten(first, MAX_DESCRIPTION, placeholder="").strip(" .")
        if not sentence.endswith(":") and len(re.findall(f"{_LETTER}{{2,}}", sentence)) > 1:
            found.append(sentence)
    return list(dict.fromkeys(found))


def _lines(answer: str) -> list[str]:
    """An answer's lines as plain English text: no reasoning, refusals, mark-up, links or symbols, no other scripts.

    Letters lose their accents, as in WordNet ("jalapeno").
    """
    decomposed = unicodedata.normalize("NFKD", answer).translate(_PUNCTUATION)
    text = "".join(sign for sign in decomposed if not unicodedata.combining(sign))
    text = _REASONING_BEFORE.sub(" ", _REASONING.sub(" ", text))
    text = re.sub(r"```.*?(?:```|$)|<[^>]*>|https?://\S+", " ", text, flags=re.DOTALL)
    if _REFUSAL.search(text):
        return []
    lines = []
    for line in text.splitlines():
        if not all(unicodedata.name(sign, "").startswith("LATIN") for sign in line if sign.isalpha()):
            continue
        readable = "".join(sign if sign.isalpha() or "!" <= sign <= "~" else " " for sign in line)
        if plain := " ".join(re.sub(r"\*\*|[_`#]", "", readable).split()):
            lines.append(plain)
    return lines
