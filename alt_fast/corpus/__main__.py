"""Make, look at and compare text corpora.

alt-fast corpus build --labels classes.csv --out corpus.json
alt-fast corpus extend corpus.json --labels more.csv --out larger.json
alt-fast corpus stats corpus.json
alt-fast corpus rephrase --labels classes.csv --out texts.csv
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from alt_fast import cli
from alt_fast.corpus import CATEGORIES, Corpus, CorpusError
from alt_fast.errors import ArgumentError, RunError
from alt_fast.files import check_place

if TYPE_CHECKING:
    from alt_fast.corpus.builder.build import Report
    from alt_fast.corpus.builder.language_model import LanguageModel

DEFAULT_SENSES = "lesk"


def print_report(report: "Report", corpus: Corpus, asked: bool) -> None:
    """What is missing from a corpus, and what was done with labels that it could not use."""
    from alt_fast.corpus.builder.stats import entities_by_label

    for label, why in report.skipped.items():
        print(f"left out: label {label!r} {why}")
    if not asked:
        print("left out: phrases that WordNet does not have and what goes without saying: --llm openai adds them")
    words = sorted({word for unknown in report.unknown.values() for word in unknown})
    if words:
        print(f"not described, since WordNet does not have them: {', '.join(words)}")
    empty = [label for label, number in entities_by_label(corpus).items() if number == 0]
    if empty:
        print(f"labels without an entity: {', '.join(empty)}")
    for prompt in report.unusable:
        print(f"the language model had no usable answer to: {prompt}")


def print_stats(corpus: Corpus, by_label: bool) -> None:
    """Counts."""
    from alt_fast.corpus.builder.stats import stats

    counts = stats(corpus)
    print(f"{counts.entities} entities")
    for category, number in counts.categories.items():
        print(f"  {category:8} {number:6}  {number / counts.entities:.0%}")
    repeated, alike = counts.repeated, len(counts.alike)
    print(f"{repeated} entities are a further sense of a unit; {alike} pairs of them read much alike")
    if counts.labels:
        shares = ", ".join(f"{counts.share(n):.0%}" for n in (1, 3, 8))
        print(f"labels with at least 1, 3, 8 entities: {shares} of {len(counts.labels)}")
    if by_label:
        for label, number in sorted(counts.labels.items(), key=lambda pair: pair[1]):
            print(f"  {number:6}  {label}")


def show(corpus: Corpus, unit: str | None, label: str | None, category: str | None) -> None:
    """Entities with their sources. label: as `build` was given it, or as it is in the corpus.

    Raises CorpusError when there are none.
    """
    from alt_fast.corpus.builder.labels import normalize_label

    sources = set() if label is None else {f"label {label}", f"label {normalize_label(label)}"}
    found = [
        entity
        for entity in corpus.entities
        if unit in (None, entity.unit)
        and category in (None, entity.category)
        and (label is None or not sources.isdisjoint(entity.sources))
    ]
    if not found:
        asked = {"unit": unit, "label": label, "category": category}
        wanted = " and ".join(f"{name} {value!r}" for name, value in asked.items() if value is not None)
        raise CorpusError(f"the corpus has no entity of {wanted}")
    for entity in found:
        print(f"{entity.category:7} {entity.text}\n        {'; '.join(entity.sources)}")


def add_describers(command: argparse.ArgumentParser) -> None:
    """Add who describes words and labels."""
    command.add_argument(
        "--llm",
        choices=("none", "openai"),
        default="none",
        help="language model to ask: any endpoint that speaks OpenAI's protocol, from OPENAI_BASE_URL, "
        "OPENAI_API_KEY and OPENAI_MODEL (default: none)",
    )
    command.add_argument("--llm-timeout", type=float, metavar="S", help="seconds for one answer (default 60)")
    command.add_argument("--llm-parallel", type=int, metavar="N", help="questions at once (default 8)")
    command.add_argument(
        "--senses",
        metavar="WHO",
        help="who chooses among descriptions: lesk (default; for what can be seen), plain-lesk (NLTK's), "
        "encoder:MODEL (any sentence-transformers model), t5:MODEL (a T5 for word sense disambiguation)",
    )


def open_language_model(arguments: argparse.Namespace) -> "LanguageModel | None":
    """Return the model that --llm asks for. Raises ArgumentError for options without an effect, and CorpusError."""
    from alt_fast.corpus.builder.language_model import LanguageModel, Settings

    options = {"timeout": arguments.llm_timeout, "parallel": arguments.llm_parallel}
    given = {name: value for name, value in options.items() if value is not None}
    if arguments.llm == "openai":
        return LanguageModel(Settings.from_environment(**given))
    if given:
        raise ArgumentError(f"--llm-{next(iter(given))} has no effect without --llm openai")
    return None


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = cli.make_parser("corpus", "Make, look at and compare text corpora.")
    commands = top.add_subparsers(dest="command", required=True, parser_class=cli.Parser)
    for name, what in (
        ("build", "make a corpus from action labels"),
        ("extend", "add what new labels need to a corpus"),
    ):
        command = commands.add_parser(name, help=what, description=what.capitalize() + ".")
        if name == "extend":
            command.add_argument("corpus", help="corpus file to start from; its entities stay, and stay first")
        cli.add_labels(command, required=True)
        cli.add_out(command, "FILE", "corpus file to write (JSON)")
        add_describers(command)
        command.add_argument(
            "--paper",
            action="store_true",
            help="the paper's steps alone: no related concepts, nothing from glosses, and all three questions of every "
            "phrase that WordNet does not have, things included",
        )
        command.add_argument("--reach", type=int, metavar="N", help="steps to related concepts (default 1)")
        command.add_argument("--related", type=int, metavar="N", help="at most so many a step (default 20)")
        command.add_argument("--no-glosses", action="store_true", help="not what glosses of a label's words speak of")
        command.add_argument("--no-body-parts", action="store_true", help="only those that labels name")
    rephrased = commands.add_parser(
        "rephrase",
        help="describe class names in a sentence",
        description="Describe class names in a sentence each, for --texts of classify, evaluate and protocols "
        "zero-shot: by WordNet's glosses of their words or, with --llm openai, by what a language model says that the "
        "actions look like.",
    )
    cli.add_labels(rephrased, required=True)
    cli.add_out(rephrased, "FILE", "CSV to write, with columns name,text; one that is there already is refused")
    add_describers(rephrased)
    shown = commands.add_parser("show", help="print entities", description="Print entities.")
    shown.add_argument("corpus")
    shown.add_argument("--unit", help="only entities of this unit")
    shown.add_argument("--label", help="only what this label itself brought")
    shown.add_argument("--category", choices=CATEGORIES, help="only this category")
    counted = commands.add_parser("stats", help="count entities", description="Count entities.")
    counted.add_argument("corpus")
    counted.add_argument("--by-label", action="store_true", help="also for each label, the poorest first")
    compared = commands.add_parser(
        "diff", help="compare", description="Compare two corpora; exits with 1 if they differ."
    )
    compared.add_argument("before")
    compared.add_argument("after")
    return top


def build_from(arguments: argparse.Namespace) -> None:
    """The commands `build` and `extend`."""
    from alt_fast.corpus.builder.build import BuildConfig, build, extend
    from alt_fast.corpus.builder.wordnet import open_wordnet
    from alt_fast.data.annotations import read_labels

    steps = [value for value in (arguments.reach, arguments.related) if value is not None]
    if arguments.paper and (steps or arguments.no_glosses):
        raise ArgumentError(
            "--reach, --related and --no-glosses have no effect on --paper, which takes no related concepts"
        )
    if arguments.reach == 0 and arguments.related is not None:
        raise ArgumentError("--related has no effect on --reach 0, which takes no related concepts")
    before = Corpus.load(arguments.corpus) if arguments.command == "extend" else None
    labels = read_labels(arguments.labels)
    config = BuildConfig(
        senses=arguments.senses or DEFAULT_SENSES,
        reach=0 if arguments.paper else 1 if arguments.reach is None else arguments.reach,
        related=20 if arguments.related is None else arguments.related,
        glosses=not (arguments.paper or arguments.no_glosses),
        body_parts=not arguments.no_body_parts,
        things_as_actions=arguments.paper,
    )
    model = open_language_model(arguments)
    cli.check_out(arguments)
    check_place(arguments.out)
    corpus, report = build(labels, open_wordnet(), config, model)
    whole = corpus if before is None else extend(before, corpus)
    if not len(whole):
        raise CorpusError(f"none of the {len(labels)} labels names anything that WordNet knows: no entity to write")
    whole.save(arguments.out)
    print(f"{len(whole)} entities of {len(whole.notes['labels'])} labels in {arguments.out}")
    print_report(report, corpus, asked=model is not None)


def rephrase_labels(arguments: argparse.Namespace) -> None:
    """The command `rephrase`."""
    from alt_fast.corpus.builder.rephrase import rephrase, rephrase_by_model
    from alt_fast.corpus.builder.wordnet import open_wordnet
    from alt_fast.data.annotations import read_labels
    from alt_fast.data.texts import write_texts

    model, labels = open_language_model(arguments), read_labels(arguments.labels)
    if model is not None and arguments.senses:
        raise ArgumentError("--senses has no effect on rephrase --llm openai, which takes what the model says first")
    cli.check_out(arguments)
    check_place(arguments.out)
    if arguments.out.exists():  # it may have been edited
        raise RunError(f"{arguments.out} is there already: remove it, or choose another --out")
    if model is None:
        done = rephrase(labels, open_wordnet(), arguments.senses or DEFAULT_SENSES)
    else:
        done = rephrase_by_model(labels, model)
    write_texts(arguments.out, done.texts)
    print(f"{len(done.texts) - len(done.plain)} of {len(done.texts)} classes described in {arguments.out}")
    for label in done.repeated:
        print(f"left out: label {label!r} repeats another label")
    if done.plain:
        print(f"not described, so that the name stays: {', '.join(done.plain)}")


def run(arguments: argparse.Namespace) -> int:
    """Do what the command says; `diff` returns 1 for corpora that differ."""
    if arguments.command in ("build", "extend"):
        build_from(arguments)
    elif arguments.command == "rephrase":
        rephrase_labels(arguments)
    elif arguments.command == "diff":
        from alt_fast.corpus.builder.stats import diff

        lines = diff(Corpus.load(arguments.before), Corpus.load(arguments.after))
        print("\n".join(lines), end="\n" if lines else "")
        return int(bool(lines))
    elif arguments.command == "stats":
        print_stats(Corpus.load(arguments.corpus), arguments.by_label)
    else:
        show(Corpus.load(arguments.corpus), arguments.unit, arguments.label, arguments.category)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, run, argv, "interrupted; answers of a language model that came until now are kept")


if __name__ == "__main__":
    sys.exit(main())
