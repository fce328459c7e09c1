"""Choices of senses by trained models: any sentence encoder, or a T5 made for it. Needs alt-fast[corpus]."""

from dataclasses import dataclass
from typing import Any

import torch

from alt_fast.corpus import CorpusError
from alt_fast.corpus.builder.senses import Candidate, Chooser, Question, VisualLesk, plain_lesk

NAMES = '"lesk", "plain-lesk", "encoder:MODEL" or "t5:MODEL"'
_MISSING = "--senses {} needs more packages: pip install 'alt-fast[corpus]'"
COSINE_WEIGHT = 15.0  # set on the same 61 choices as the terms of VisualLesk


def open_chooser(name: str, wordnet: Any) -> Chooser:
    """The chooser of a name. Raises CorpusError for an unknown one, or when its model or packages cannot be had.

    MODEL is a folder, or a model's name on the Hugging Face hub: of sentence-transformers after "encoder:", of
    transformers after "t5:" (Wahle et al. 2021: "jpwahle/t5-large-word-sense-disambiguation").
    """
    kind, _, model = name.partition(":")
    if name == "lesk":
        return VisualLesk(wordnet)
    if name == "plain-lesk":
        return plain_lesk
    if kind not in ("encoder", "t5") or not model:
        raise CorpusError(f"senses must be {NAMES}, got {name!r}")
    try:
        return EncoderRanker.open(model, wordnet) if kind == "encoder" else T5Ranker.open(model)
    except ImportError as e:
        raise CorpusError(_MISSING.format(name)) from e
    except (OSError, ValueError) as e:
        raise CorpusError(f"--senses {name}: cannot load {model}: {e}") from e


@dataclass(frozen=True)
class EncoderRanker:
    """VisualLesk's score, plus a sentence encoder's cosine of the label to each candidate's text.

    The cosine alone knows neither how frequent a sense is nor what can be seen, and chooses worse than VisualLesk does
    (docs/corpus.md has both).
    """

    encoder: Any
    lesk: VisualLesk

    @staticmethod
    def open(model: str, wordnet: Any) -> "EncoderRanker":
        from sentence_transformers import SentenceTransformer  # takes seconds

        return EncoderRanker(SentenceTransformer(model, device="cpu"), VisualLesk(wordnet))

    def __call__(self, question: Question) -> list[float]:
        """Scores of the candidates."""
        lesk = self.lesk(question)
        return [score + COSINE_WEIGHT * cosine for score, cosine in zip(lesk, self.cosines(question), strict=True)]

    def cosines(self, question: Question) -> list[float]:
        """Cosines of the label to the candidates: their names, description and examples."""
        texts = [_text(candidate, question.unit.text) for candidate in question.candidates]
        label, *rest = self.encoder.encode([question.label, *texts], normalize_embeddings=True, show_progress_bar=False)
        return [float(label @ other) for other in rest]


@dataclass(frozen=True)
class T5Ranker:
    """The mean log-likelihood of each description as a T5's answer to Wahle et al.'s question."""

    model: Any
    tokenizer: Any

    @staticmethod
    def open(model: str) -> "T5Ranker":
        from transformers import AutoTokenizer, T5ForConditionalGeneration  # takes seconds

        return T5Ranker(T5ForConditionalGeneration.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model))

    @torch.inference_mode()
    def __call__(self, question: Question) -> list[float]:
        """Scores of the candidates."""
        descriptions = [candidate.description for candidate in question.candidates]
        prompt = self.tokenizer(_question(question, descriptions), return_tensors="pt")
        answers = self.tokenizer(descriptions, return_tensors="pt", padding=True)
        encoded = self.model.encoder(**prompt).last_hidden_state.expand(len(descriptions), -1, -1)
        targets = answers.input_ids.masked_fill(answers.attention_mask == 0, -100)
        logits = self.model(
            encoder_outputs=(encoded,),
            attention_mask=prompt.attention_mask.expand(len(descriptions), -1),
            labels=targets,
        ).logits
        losses = torch.nn.functional.cross_entropy(logits.float().mT, targets, reduction="none")  # 0 at padding
        return (-losses.sum(1) / answers.attention_mask.sum(1)).tolist()


def _text(candidate: Candidate, unit: str) -> str:
    sense = candidate.synset
    names = [unit] if sense is None else [name.replace("_", " ") for name in sense.lemma_names()]
    examples = [] if sense is None else sense.examples()
    return f"{', '.join(names)}: {candidate.description}. {'; '.join(examples)}"


def _question(question: Question, descriptions: list[str]) -> str:
    *first, last = (f'" {description} "' for description in descriptions)
    listed = f"{' , '.join(first)} , or {last}" if first else last
    word = f'" {question.unit.text} "'
    return (
        f"question: which description describes the word {word} best in the following context? "
        f"descriptions: [ {listed} ] context: {question.label.replace(question.unit.text, word)}"
    )
