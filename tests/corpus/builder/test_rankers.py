"""Choices by trained models, here small ones with random weights: what they are asked, and that scores decide."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from alt_fast.corpus import CorpusError
from alt_fast.corpus.builder.rankers import COSINE_WEIGHT, EncoderRanker, T5Ranker, _question, open_chooser
from alt_fast.corpus.builder.senses import Candidate, Question
from alt_fast.corpus.builder.units import Unit, units_of

WORDS = ["[PAD]", "[UNK]", "</s>", "play", "guitar", "a", "on", "of", "games", "head", "gang", "clamp"]


def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>")
    fast.save_pretrained(folder)
    return fast


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    torch.manual_seed(0)
    tokenizer(tmp_path / "bert")
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    bert = Transformer(str(tmp_path / "bert"))
    SentenceTransformer(modules=[bert, Pooling(32)], device="cpu").save(str(tmp_path / "encoder"))
    return str(tmp_path / "encoder")


@pytest.fixture
def t5(tmp_path: Path) -> str:
    torch.manual_seed(0)
    tokenizer(tmp_path / "t5")
    config = T5Config(
        vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    return str(tmp_path / "t5")


QUESTION = Question(
    "play guitar",
    Unit(("capo",), "n"),
    [Candidate("head of a gang"), Candidate("a clamp on a guitar"), Candidate("games")],
)


def test_encoders_add_their_cosine_to_lesk(encoder: str, wordnet: Any) -> None:
    ranker = open_chooser(f"encoder:{encoder}", wordnet)
    assert isinstance(ranker, EncoderRanker)
    cosines = ranker.cosines(QUESTION)
    label, *texts = ranker.encoder.encode(
        ["play guitar", "capo: head of a gang. ", "capo: a clamp on a guitar. ", "capo: games. "]
    )
    expected = [torch.cosine_similarity(torch.tensor(label), torch.tensor(text), 0).item() for text in texts]
    assert cosines == pytest.approx(expected, abs=1e-5)
    lesk = ranker.lesk(QUESTION)
    assert ranker(QUESTION) == pytest.approx([a + COSINE_WEIGHT * b for a, b in zip(lesk, cosines, strict=True)])
    sense = wordnet.synset("burger.n.02")
    unit = units_of("burger", wordnet)[0][0]
    one = ranker.cosines(Question("eating burger", unit, [Candidate(sense.definition(), sense)]))
    same = ranker.encoder.similarity(
        *ranker.encoder.encode(["eating burger", f"burger, hamburger: {sense.definition()}. "])
    )
    assert one == pytest.approx([same.item()], abs=1e-5)


def test_t5_scores_are_its_likelihoods(t5: str, wordnet: Any) -> None:
    ranker = open_chooser(f"t5:{t5}", wordnet)
    assert isinstance(ranker, T5Ranker)
    scores = ranker(QUESTION)
    prompt = ranker.tokenizer(_question(QUESTION, [c.description for c in QUESTION.candidates]), return_tensors="pt")
    for candidate, score in zip(QUESTION.candidates, scores, strict=True):  # one by one, without padding
        labels = ranker.tokenizer(candidate.description, return_tensors="pt").input_ids
        assert -ranker.model(**prompt, labels=labels).loss.item() == pytest.approx(score, rel=1e-4)


def test_t5_is_asked_as_it_was_trained() -> None:
    assert _question(QUESTION, ["one", "two", "three"]) == (
        'question: which description describes the word " capo " best in the following context? '
        'descriptions: [ " one " , " two " , or " three " ] context: play guitar'
    )
    guitar = Question("play guitar", Unit(("guitar",), "n"), [])
    assert _question(guitar, ["one"]).endswith('descriptions: [ " one " ] context: play " guitar "')


@pytest.mark.parametrize("kind", ["encoder", "t5"])
def test_models_that_are_not_there(kind: str, wordnet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CorpusError, match=f"--senses {kind}:.*nothing: cannot load"):
        open_chooser(f"{kind}:{tmp_path}/nothing", wordnet)
    package = {"encoder": "sentence_transformers", "t5": "transformers"}[kind]
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(CorpusError, match=r"needs more packages: pip install 'alt-fast\[corpus\]'"):
        open_chooser(f"{kind}:x", wordnet)
