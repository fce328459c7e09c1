"""Make, look at and compare text corpora.

python -m alt_fast.corpus build --labels classes.csv --out corpus.json
python -m alt_fast.corpus stats corpus.json
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alt_fast.corpus import CATEGORIES, Corpus, CorpusError
from alt_fast.corpus.build import BuildConfig, Report, build, extend
from alt_fast.corpus.senses import CHOOSERS
from alt_fast.corpus.wordnet import open_wordnet
from alt_fast.data.annotations import AnnotationError, read_classes

_RELATIONS = ("kind of ", "part of ", "named after ")


def read_labels(path: str) -> list[str]:
    """Labels of a class file, or of a text file with one a line; "kinetics400" gives torchvision's list of them."""
    if path == "kinetics400":
        from torchvision.models._meta import _KINETICS400_CATEGORIES  # takes seconds

        return list(_KINETICS400_CATEGORIES)
    if Path(path).suffix in (".csv", ".json"):
        return read_classes(path)
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise CorpusError(f"cannot read {path}: {e}") from e
    if not lines:
        raise CorpusError(f"{path} names no labels")
    numbered = all(re.match(r"\d+\s+\S", line) for line in lines)  # UCF-101's classInd.txt
    return read_classes(path) if numbered else lines


def entities_by_label(corpus: Corpus) -> dict[str, int]:
    """How many entities come from each label: its own concepts, and those related to them."""
    units: dict[str, set[str]] = {}
    for entity in corpus.entities:
        for source in entity.sources:
            if source.startswith("label "):
                units.setdefault(source.removeprefix("label "), set()).add(entity.unit)
    related = Counter(
        source.removeprefix(relation)
        for entity in corpus.entities
        for source in set(entity.sources)
        for relation in _RELATIONS
        if source.startswith(relation)
    )
    return {label: sum(1 + related[unit] for unit in own) for label, own in units.items()}


def write(path: str, corpus: Corpus, labels: Sequence[str], config: BuildConfig, report: Report) -> None:
    """The corpus with how it was made."""
    notes: dict[str, Any] = {
        "made_with": asdict(config),
        "labels": list(labels),
        "choices": [asdict(choice) for choice in report.choices],
    }
    corpus.save(path, notes)
    print(f"{len(corpus)} entities of {len(labels)} labels in {path}")
    print("left out: phrases that WordNet does not have, and what goes without saying; both take a language model")
    words = sorted({word for unknown in report.unknown.values() for word in unknown})
    if words:
        print(f"not in WordNet: {', '.join(words)}")


def print_stats(corpus: Corpus) -> None:
    """Counts."""
    print(f"{len(corpus)} entities")
    numbers = Counter(entity.category for entity in corpus.entities)
    for category in CATEGORIES:
        print(f"  {category:8} {numbers[category]:6}  {numbers[category] / len(corpus):.0%}")
    by_label = entities_by_label(corpus)
    if by_label:
        counts = sorted(by_label.values())
        for least in (3, 8):
            share = sum(count >= least for count in counts) / len(counts)
            print(f"labels with at least {least} entities: {share:.0%} of {len(counts)} that have any")
    repeated = sum(count - 1 for count in Counter(entity.unit for entity in corpus.entities).values())
    print(f"units that stand for several senses: {repeated} more entities than units")


def print_diff(before: Corpus, after: Corpus) -> bool:
    """What was added, removed and put into another category; True when anything was."""
    old, new = ({(e.unit, e.description): e.category for e in corpus.entities} for corpus in (before, after))
    for unit, description in old:
        if (unit, description) not in new:
            print(f"- {unit}: {description}")
    for (unit, description), category in new.items():
        if (unit, description) not in old:
            print(f"+ {unit}: {description}")
        elif old[unit, description] != category:
            print(f"~ {unit}: {old[unit, description]} is now {category}")
    return old != new


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m alt_fast.corpus", description="Make, look at and compare text corpora."
    )
    commands = top.add_subparsers(dest="command", required=True)
    for name, what in (
        ("build", "make a corpus from action labels"),
        ("extend", "add what new labels need to a corpus"),
    ):
        command = commands.add_parser(name, help=what, description=what.capitalize() + ".")
        if name == "extend":
            command.add_argument("corpus", help="corpus file to start from; its entities stay, and stay first")
        command.add_argument(
            "--labels", nargs="+", required=True, metavar="FILE", help='class files, or text files; or "kinetics400"'
        )
        command.add_argument("--out", required=True, metavar="FILE", help="corpus file to write (JSON)")
        command.add_argument("--senses", choices=list(CHOOSERS), default="lesk", help="who chooses a word's sense")
        command.add_argument("--reach", type=int, default=1, metavar="N", help="steps to related concepts (default 1)")
        command.add_argument("--related", type=int, default=20, metavar="N", help="at most so many a step (default 20)")
        command.add_argument("--no-body-parts", action="store_true", help="only those that labels name")
    show = commands.add_parser("show", help="print entities", description="Print entities.")
    show.add_argument("corpus")
    show.add_argument("--unit", help="only entities of this unit")
    show.add_argument("--category", choices=CATEGORIES, help="only this category")
    commands.add_parser("stats", help="count entities", description="Count entities.").add_argument("corpus")
    diff = commands.add_parser("diff", help="compare", description="Compare two corpora; exits with 1 if they differ.")
    diff.add_argument("before")
    diff.add_argument("after")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.command in ("build", "extend"):
            labels = [label for path in arguments.labels for label in read_labels(path)]
            config = BuildConfig(arguments.senses, arguments.reach, arguments.related, not arguments.no_body_parts)
            before = Corpus.load(arguments.corpus) if arguments.command == "extend" else None
            corpus, report = build(labels, open_wordnet(), config)
            write(arguments.out, corpus if before is None else extend(before, corpus), labels, config, report)
        elif arguments.command == "diff":
            return int(print_diff(Corpus.load(arguments.before), Corpus.load(arguments.after)))
        elif arguments.command == "stats":
            print_stats(Corpus.load(arguments.corpus))
        else:
            for entity in Corpus.load(arguments.corpus).entities:
                if arguments.unit in (None, entity.unit) and arguments.category in (None, entity.category):
                    print(f"{entity.category:7} {entity.text}\n        {'; '.join(entity.sources)}")
    except (AnnotationError, CorpusError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
