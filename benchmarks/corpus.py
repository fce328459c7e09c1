"""What a corpus is worth: Kinetics-400's in numbers, and how many of 100 hand-made choices each chooser makes.

python -m benchmarks.corpus
python -m benchmarks.corpus --choosers encoder:sentence-transformers/all-MiniLM-L6-v2 --results FILE.jsonl

The choices (kinetics400_senses.csv) are of words drawn at random (Python's random.Random(0)) from all words of the
labels that have several senses in WordNet; a word that no sense fits was passed over. Where WordNet's distinctions do
not matter for a video, several senses are right. None of the words in these labels was used to set a weight.
"""

import argparse
import csv
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alt_fast.corpus import CorpusError
from alt_fast.corpus.builder.build import BuildConfig, build
from alt_fast.corpus.builder.rankers import EncoderRanker, open_chooser
from alt_fast.corpus.builder.senses import Chooser, Question, choose_senses
from alt_fast.corpus.builder.stats import stats
from alt_fast.corpus.builder.units import units_of
from alt_fast.corpus.builder.wordnet import open_wordnet
from alt_fast.data.annotations import read_names
from alt_fast.measure.provenance import provenance

CORPORA = {
    "Kinetics-400, no language model": BuildConfig(),
    "Kinetics-400, no language model, `--paper`": BuildConfig(reach=0, glosses=False),
}
CHOICES = Path(__file__).parent / "kinetics400_senses.csv"


def first_sense(question: Question) -> list[float]:
    """No choice at all: WordNet's most frequent sense."""
    return [0.0] * len(question.candidates)


def right_choices(wordnet: Any, chooser: Chooser) -> list[bool]:
    """For each hand-made choice, whether a right sense is among those chosen for the label's words."""
    right = []
    with CHOICES.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            units, _ = units_of(row["label"], wordnet)
            chosen = {choice.chosen for choice in choose_senses(row["label"], units, wordnet, chooser).values()}
            right.append(bool(chosen & set(row["right_senses"].split())))
    return right


def measure(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of the report: Kinetics-400's corpora, then each chooser."""
    wordnet = open_wordnet()
    for title, config in CORPORA.items():
        start = time.perf_counter()
        corpus, _ = build(read_names("kinetics400"), wordnet, config)
        seconds = time.perf_counter() - start
        counts = stats(corpus)
        yield {
            "corpus": title,
            "entities": counts.entities,
            "categories": counts.categories,
            "labels_with_at_least": {least: counts.share(least) for least in (1, 3, 8)},
            "further_senses": counts.repeated,
            "alike": len(counts.alike),
            "seconds": seconds,
        }
    choosers: dict[str, Chooser] = {"the most frequent sense": first_sense}
    for name in ("plain-lesk", "lesk", *names):
        chooser = open_chooser(name, wordnet)
        kind, colon, model = name.partition(":")
        shown = f"{kind}{colon}{Path(model).name}"  # results name no folders
        choosers[shown] = chooser
        if isinstance(chooser, EncoderRanker):
            choosers[f"{shown}, its cosine alone"] = chooser.cosines
    for name, chooser in choosers.items():
        right = right_choices(wordnet, chooser)
        yield {"chooser": name, "right": sum(right), "choices": len(right)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.corpus", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--choosers", nargs="*", default=[], metavar="WHO", help="encoder:MODEL or t5:MODEL, as --senses"
    )
    parser.add_argument("--results", type=Path, help="also write JSON lines")
    options = parser.parse_args(arguments)
    rows = []
    try:
        for row in measure(options.choosers):
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows.append(row)
    except CorpusError as e:
        parser.error(str(e))
    if options.results:
        lines = [{"provenance": provenance()}, *rows]
        options.results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
