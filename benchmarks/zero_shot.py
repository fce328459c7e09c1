"""What others do for zero-shot recognition, on ALT: does it help with classes never trained on, and what does it cost?

python -m benchmarks.zero_shot --out FILE.jsonl
python -m benchmarks.zero_shot --out FILE.jsonl --levels 1 --seeds 5 -- --optim.epochs 6

On both levels of Motion Shapes the image tower learns along, a tenth as fast as the rest. Videos and the CLIP that
training starts from stay; seeds draw ALT's first weights, order and noise. Every seed is trained as it is, with the
mean of its weights, and kept near the first tower; the first of the three is also tested in other ways. Frame tokens
are those of the trained tower, and scored by its scale: what they say of class names is not what CLIP says. Beside the
scores of ALT's own head stands what its queries are worth on both lists, as `evaluate --probe-alignment` finds it (the
first results committed have none). Stop it, and the same command goes on where it was; other options want other --runs.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from alt_fast import cli
from alt_fast.corpus import Corpus
from alt_fast.data.motion_shapes import LEVELS
from alt_fast.files import CLIP
from alt_fast.inference.lists import run_lists, starting_tower
from alt_fast.inference.scoring import EvalConfig
from alt_fast.inference.trained import TrainedModel, load
from alt_fast.measure.lines import Row, append_row, check_rows, read_rows
from alt_fast.model.config import Head
from alt_fast.paper.ablations import spread_text
from alt_fast.training.config import parse
from alt_fast.training.run import run
from alt_fast.training.run_folder import has_result
from benchmarks.alignment_rows import LEVEL_2

LISTS = ("test", "unseen")
PLAIN, AVERAGED, DISTILLED = "plain", "averaged", "distilled"
TRAININGS = {PLAIN: (), AVERAGED: ("--optim.ema", "0.99"), DISTILLED: ("--optim.distill", "1")}
JOBS = {
    1: ("--config", "motion_shapes_clip"),
    2: (*LEVEL_2, "--model.tuning", "finetune"),
}


@dataclass(frozen=True)
class Way:
    """What is trained, and how it is tested. share: of the trained image tower, beside CLIP's. texts: behind names."""

    name: str
    training: str = PLAIN
    head: Head = "alt"
    share: float = 1.0
    texts: bool = False


WAYS = {
    "alt": Way("ALT as it is"),
    "clip": Way("frame tokens against class names", head="clip"),
    "both": Way("ALT and frame tokens against class names, averaged", head="both"),
    "texts": Way("classes with descriptions", texts=True),
    "share-75": Way("3/4 of the way from CLIP's tower", share=0.75),
    "share-50": Way("half of the way", share=0.5),
    "share-25": Way("1/4 of the way", share=0.25),
    "averaged": Way("weights averaged in training", AVERAGED),
    "distilled": Way("kept near CLIP's tower in training", DISTILLED),
    "distilled-both": Way("kept near it, and averaged", DISTILLED, "both"),
}


@dataclass(frozen=True)
class Experiment:
    """One level. runs: folder of videos and runs. options: of every training, after the level's."""

    level: int
    runs: Path
    options: Sequence[str] = field(default=())

    @cached_property
    def start(self) -> Sequence[str]:
        """Options by which training starts from the level's CLIP, which level 1 trains in the first run of all."""
        first = self.runs / f"level{self.level}" / "seed0" / PLAIN / CLIP
        return ["--pretrain", "null", "--model.pretrained", str(first)] if first.exists() else ()

    def train(self, seed: int, training: str) -> Path:
        """Train, or go on with it, unless it is done; returns the run folder. Raises RunError: see `has_result`."""
        folder = self.runs / f"level{self.level}" / f"seed{seed}" / training
        own = ["--seed", str(seed), "--data.root", str(self.runs / f"data{self.level}"), "--frame-only", "false"]
        start = () if (seed, training) == (0, PLAIN) else self.start
        job = [*JOBS[self.level], *self.options, *own, *start, *TRAININGS[training]]
        config = parse([*job, "--out", str(folder), "--resume"])
        if not has_result(folder, config):
            run(config)
        return folder

    def test(self, seed: int, ways: Sequence[str]) -> Iterator[Row]:
        """Test the models of a seed in each of these ways."""
        if ways:
            self.train(0, PLAIN)  # the CLIP of all
        for way in map(WAYS.__getitem__, ways):
            folder = self.train(seed, way.training)
            trained = load(folder)
            lists = run_lists(folder, trained)
            if way.texts:
                names = [name for _, _, classes in lists for name in classes]
                trained.use_texts(descriptions(names, Corpus.load(LEVELS[self.level].CORPUS)), names)
            if way.share != 1:
                trained.interpolate(starting_tower(folder), way.share)
            yield scores(trained, lists, way.head, folder)


def descriptions(names: Sequence[str], corpus: Corpus) -> Mapping[str, str]:
    """By class name, the corpus's sentences of what the name mentions; nothing for a name that mentions none."""
    found = {}
    for name in names:
        mentioned = [entity for entity in corpus.entities if re.search(rf"\b{re.escape(entity.unit)}\b", name)]
        if mentioned:
            found[name] = ", ".join(f"{entity.unit} is {entity.description}" for entity in mentioned)
    return found


def scores(trained: TrainedModel, lists: Sequence[tuple[str, Any, list[str]]], head: Head, folder: Path) -> Row:
    """Top-1 of trained and of unseen classes; of ALT's head also what its queries are worth."""
    config = parse(["--config", str(folder / "config.yaml")])
    testing = EvalConfig(config.optim.batch_size, loading=config.data.loading, head=head)
    found = [trained.score(name, videos, names, testing) for name, videos, names in lists]
    return {
        **{key: score["top1"] for key, score in zip(LISTS, found, strict=True)},
        "videos": [score["videos"] for score in found],
        "unreadable": sum(len(score["unreadable"]) for score in found),
        "probes": [trained.probe_alignment(videos, names, testing) for _, videos, names in lists if head == "alt"],
    }


def table(rows: Sequence[Row], level: int, ways: Sequence[str]) -> str:
    """Markdown: top-1 in per cent, mean and deviation over seeds; the gain over ALT as it is, and in how many seeds."""
    by = {(row["way"], row["seed"]): row for row in rows if row["level"] == level}
    head = [f"level {level}", "test", "unseen", "gain, test", "gain, unseen", "seeds that gain unseen"]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    for way in ways:
        seeds = [seed for name, seed in by if name == way]
        paired = [(by[way, seed], by["alt", seed]) for seed in seeds if ("alt", seed) in by and way != "alt"]
        lines.append([WAYS[way].name, *(spread_text([100 * by[way, seed][key] for seed in seeds]) for key in LISTS)])
        for key in LISTS:
            gains = [100 * (row[key] - plain[key]) for row, plain in paired]
            lines[-1].append(f"{sum(gains) / len(gains):+.1f}" if gains else "")
        lines[-1].append(f"{sum(gain > 0 for gain in gains)} of {len(gains)}" if gains else "")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zero_shot", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--levels", type=int, nargs="+", choices=JOBS, default=list(JOBS), help="default: 1 2")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="JSON lines; what it has is not repeated"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/zero_shot"), metavar="DIR", help="videos and models")
    parser.add_argument(
        "options", nargs="*", metavar="OPTION", help="after --: changes every training, as in -- --optim.epochs=6"
    )
    return parser


def work(given: argparse.Namespace) -> int:
    """Train and test what --out has not, and print the tables."""
    check_rows(given.out)

    def known() -> list[Row]:
        return [row for row in read_rows(given.out) if "way" in row and row["options"] == given.options]

    for level in given.levels:
        experiment = Experiment(level, given.runs.absolute(), given.options)
        for seed in range(given.seeds):
            done = {row["way"] for row in known() if (row["level"], row["seed"]) == (level, seed)}
            missing = [way for way in given.ways if way not in done]
            for way, found in zip(missing, experiment.test(seed, missing), strict=True):
                own = {"level": level, "seed": seed, "way": way, "options": given.options}
                append_row(given.out, {**own, **found})
    rows = known()
    print("\n\n".join(table(rows, level, given.ways) for level in given.levels))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
