"""The command-line options that name a corpus to use instead of the one a model was trained with."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from alt_fast.corpus import CATEGORIES, Corpus

if TYPE_CHECKING:
    from alt_fast.model import ALT


def add_corpus_options(parser: argparse.ArgumentParser) -> None:
    """--corpus and --categories."""
    parser.add_argument("--corpus", metavar="FILE", help="text corpus to align to; default: the one trained with")
    parser.add_argument(
        "--categories", nargs="+", choices=CATEGORIES, help="only these of its entities; default: all of --corpus"
    )


def use_corpus(model: "ALT", path: str | None, categories: Sequence[str] | None) -> None:
    """Do what the options say. Raises ValueError for a model that aligns to no corpus, CorpusError for a bad one."""
    if path is not None or categories is not None:
        model.use_corpus(None if path is None else Corpus.load(path), categories)
