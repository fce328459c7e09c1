"""What a language model adds to a corpus: units that labels imply, and descriptions of phrases (paper, appendix A)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from alt_fast.corpus.builder.language_model import LanguageModel, parse_descriptions, parse_units

KINDS = {"objects": "object", "body parts": "body", "scenes": "scene", "roles": "object"}
"""What labels are asked for, and the category of the answers that WordNet does not know."""

UNITS_PROMPT = "What are identifying {kind} of an action {label}? List them concisely."
PHRASE_PROMPTS = (
    "Concisely describe what an action {phrase} looks like.",
    "Concisely list potential explanations for {phrase}.",
    "Concisely explain {phrase} in one sentence.",
)
"""The first is for actions."""
AGAIN = " Answer in plain English, with nothing else before or after."


@dataclass
class Implied:
    """Answers of a language model; `unusable` are the prompts that it answered twice with nothing of use.

    units: by label, pairs of a unit and its kind. descriptions: candidates by phrase.
    """

    units: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    descriptions: dict[str, list[str]] = field(default_factory=dict)
    unusable: list[str] = field(default_factory=list)

    def ask_for_units(self, labels: Sequence[str], model: LanguageModel) -> None:
        """Ask what identifies each label; raises CorpusError as LanguageModel.ask does."""
        asked = [(label, kind) for label in labels for kind in KINDS]
        prompts = [UNITS_PROMPT.format(kind=kind, label=label) for label, kind in asked]
        for (label, kind), units in zip(asked, self._ask(prompts, parse_units, "implied units", model), strict=True):
            self.units.setdefault(label, []).extend((unit, kind) for unit in units)

    def ask_for_descriptions(self, phrases: Mapping[str, bool], model: LanguageModel) -> None:
        """Ask what phrases mean; the values say whether as of actions. Raises CorpusError as LanguageModel.ask."""
        asked = [
            (phrase, prompt.format(phrase=phrase))
            for phrase, action in phrases.items()
            for prompt in (PHRASE_PROMPTS if action else PHRASE_PROMPTS[1:])
        ]
        answers = self._ask([prompt for _, prompt in asked], parse_descriptions, "descriptions", model)
        for (phrase, _), descriptions in zip(asked, answers, strict=True):
            known = self.descriptions.setdefault(phrase, [])
            known += [description for description in descriptions if description not in known]

    def looks(self, actions: Sequence[str], model: LanguageModel) -> dict[str, str]:
        """Return what actions look like in one sentence, of those that the answers say it of.

        It is the first of a phrase's questions, whose answers `ask_for_descriptions` has as well. Raises CorpusError as
        LanguageModel.ask does.
        """
        prompts = [PHRASE_PROMPTS[0].format(phrase=action) for action in actions]
        answers = self._ask(prompts, parse_descriptions, "descriptions", model)
        return {action: found[0] for action, found in zip(actions, answers, strict=True) if found}

    def _ask(
        self, prompts: Sequence[str], parse: Callable[[str], list[str]], what: str, model: LanguageModel
    ) -> list[list[str]]:
        """Parsed answers; where there is nothing in one, the question is put once more."""
        found = dict(zip(prompts, map(parse, model.ask(prompts, what)), strict=True))
        empty = [prompt for prompt, items in found.items() if not items]
        found |= dict(zip(empty, map(parse, model.ask([p + AGAIN for p in empty], f"{what}, again")), strict=True))
        self.unusable += [prompt for prompt in empty if not found[prompt]]
        return [found[prompt] for prompt in prompts]
