"""What teaches a tiny CLIP's patches what they show, by experiment: what its frames and regions then align to.

python -m benchmarks.grounding --out FILE.jsonl
python -m benchmarks.grounding --config motion_shapes_2 --seeds 2 --out FILE.jsonl -- --model.pretrained=null \
    --pretrain.steps=900 --pretrain.batch_size=96 --pretrain.lr=2e-3

Beside CLIP's loss of frames and captions stands nothing, or a term for image tokens: `TERMS`, all of one weight. They
have the same frames, captions, steps and first weights; frames are kept for the next term, 7 GB of them in the second
command. Then videos are looked at, of trained classes and of unseen ones: how many frame tokens, and regions, are
nearest to an entity that is true of what they show, among those of its category. Stop it, and the same command goes on
where it was. A tower goes once it has been looked at.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alt_fast import cli
from alt_fast.corpus import Corpus
from alt_fast.data.rng import Stream, generator
from alt_fast.distributed import pick_device
from alt_fast.errors import ArgumentError
from alt_fast.files import CLIP, make_folder
from alt_fast.inference.scoring import EvalConfig
from alt_fast.inference.trained import TrainedModel, save_module
from alt_fast.measure.lines import Row, append_row, check_rows, read_rows
from alt_fast.model.alt import ALT
from alt_fast.model.text import PROMPTS, encode_tokens
from alt_fast.paper.ablations import spread_text
from alt_fast.training.clip_stage import ClipStage, Seen, matching_loss
from alt_fast.training.config import TrainConfig, parse
from alt_fast.training.lists import prepare_data, read_lists
from alt_fast.training.loop import fit
from alt_fast.training.run import clip_stage
from alt_fast.training.states import SaveEvery

CROP = 0.5
"""Side of what CLIPSelf's teacher looks at, as a share of the frame."""


class Replayed(ClipStage):
    """A stage whose batches are drawn once for all terms of a seed. drawn: what is there of them."""

    drawn: list[Any]

    def batches(self, step: int) -> Iterator[Any]:
        """Return batches from a step and on, drawing those that no term has had yet."""
        others = super().batches(len(self.drawn))
        for number in range(self.config.steps):
            if number == len(self.drawn):
                self.drawn.append(next(others))
            if number >= step:
                yield self.drawn[number]


class Nearest(Replayed):
    """Captions against images that are as near them as their nearest patch."""

    def grounding(self, seen: Seen) -> Tensor:
        """Return the loss of the maximum over patches."""
        logits = (seen.scale * seen.patches.flatten(0, 1) @ seen.caption.T).unflatten(0, seen.patches.shape[:2]).amax(1)
        return matching_loss(logits, logits.T, seen.captions)


class LateInteraction(Replayed):
    """FILIP's (Yao et al., arXiv 2111.07783): every patch against its nearest word, every word against its patch."""

    def grounding(self, seen: Seen) -> Tensor:
        """Return the loss of means of these, over patches for images and over words for captions."""
        hidden, end = encode_tokens(self.module, seen.tokens)
        words = F.normalize(self.module.ln_final(hidden) @ self.module.text_projection, dim=-1)
        padding = torch.arange(words.shape[1], device=end.device) > end[:, None]
        near = torch.einsum("ipd,twd->itpw", seen.patches, words)
        of_images = near.masked_fill(padding[:, None], -torch.inf).amax(3).mean(2)
        of_words = near.amax(2).masked_fill(padding, 0).sum(2) / (end + 1)
        return matching_loss(seen.scale * of_images, seen.scale * of_words.T, seen.captions)


class Distilled(Replayed):
    """CLIPSelf's (Wu et al., arXiv 2310.01403): the patches of a box have the class token of what is cut out there.

    The teacher is the tower itself as it trains; theirs is one that has been trained.
    """

    def grounding(self, seen: Seen) -> Tensor:
        """Return one less the cosine of both, of one box for all frames, enlarged to a whole frame."""
        rows, columns = self.module.visual.grid_size
        height, width = round(CROP * rows), round(CROP * columns)
        rng = generator(self.seed, Stream.CAPTION, 3, seen.number)
        top, left = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
        high, wide = (size // grid for size, grid in zip(seen.pixels.shape[2:], (rows, columns), strict=True))
        cut = seen.pixels[..., top * high : (top + height) * high, left * wide : (left + width) * wide]
        with torch.no_grad():
            enlarged = F.interpolate(cut, seen.pixels.shape[2:], mode="bilinear", antialias=True)
            taught = self.module.visual(enlarged)[0]
        grid = seen.patches.unflatten(1, (rows, columns))[:, top : top + height, left : left + width]
        return 1 - F.cosine_similarity(grid.mean((1, 2)), taught, dim=-1).mean()


TERMS: Mapping[str, tuple[type[Replayed], str]] = {
    "captions": (Replayed, "none, captions alone"),
    "nearest": (Nearest, "nearest patch of each caption"),
    "late": (LateInteraction, "patches and words (FILIP)"),
    "distilled": (Distilled, "class tokens of crops (CLIPSelf)"),
    "boxes": (Replayed, "what the generator knows, as shipped"),
}
"""How each stage is trained, and what tables call it."""

KINDS = {"frame": "frame token", "region": "region"}


def look(config: TrainConfig, tower: Path, folder: Path) -> dict[str, Any]:
    """Return by list, test and unseen, how many tokens align to what they show, by kind and category."""
    lists = read_lists(prepare_data(config.data, folder))
    model = ALT(replace(config.model, pretrained=str(tower), query="entities"), Corpus.load(str(config.corpus)))
    model.embed_corpus()
    trained = TrainedModel(model, lists.classes, list(PROMPTS[config.templates]), config.augment)
    testing = EvalConfig(config.optim.batch_size, loading=config.data.loading)
    named = {"test": (lists.test, lists.classes), "unseen": (lists.unseen, lists.unseen_classes)}
    found = {name: trained.probe_alignment(*own, testing) for name, own in named.items()}
    return {name: {kind: probe[f"{kind}_accuracy"] for kind in KINDS} for name, probe in found.items()}


def table(rows: Sequence[Row]) -> str:
    """Markdown, in per cent: every term's tokens on unseen classes and, behind a stroke, on trained ones."""
    known = [name for name in TERMS if any(row["term"] == name for row in rows)]
    categories = list(rows[0]["found"]["unseen"]["frame"])
    heads = [f"{words}: {category}" for words in KINDS.values() for category in categories]
    lines = [["term", *heads], ["---", *("--:" for _ in heads)]]
    for name in known:
        own = [row["found"] for row in rows if row["term"] == name]
        cells = [
            " / ".join(spread_text([100 * found[part][kind][category] for found in own]) for part in ("unseen", "test"))
            for kind in KINDS
            for category in categories
        ]
        lines.append([TERMS[name][1], *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grounding", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", default="motion_shapes_clip", metavar="NAME", help="default: motion_shapes_clip")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--terms", nargs="+", choices=TERMS, default=list(TERMS), metavar="TERM", help=", ".join(TERMS))
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="JSON lines; what it has is not repeated"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/grounding"), metavar="DIR", help="videos and unfinished towers"
    )
    parser.add_argument("options", nargs="*", metavar="OPTION", help="after --: changes the job")
    return parser


def work(given: argparse.Namespace) -> int:
    """Train what --out has not, and print the table."""
    check_rows(given.out)

    def known() -> list[Row]:
        rows = read_rows(given.out)
        return [row for row in rows if (row.get("config"), row.get("options")) == (given.config, given.options)]

    options = hashlib.sha256(json.dumps(given.options).encode()).hexdigest()[:8]  # videos and towers of others differ
    runs = given.runs.absolute() / given.config / options
    for seed in range(given.seeds):
        config = parse(
            ["--config", given.config, *given.options, "--seed", str(seed), "--data.root", str(runs / "data")]
        )
        if config.pretrain is None or not config.pretrain.grounding:
            raise ArgumentError(f"{given.config} pretrains no grounded tower: take -- --pretrain.steps=N")
        drawn: list[Any] = []
        done = {row["term"] for row in known() if row["seed"] == seed}
        for term in [term for term in given.terms if term not in done]:
            pretrain = replace(config.pretrain, grounding=0) if term == "captions" else config.pretrain
            stage = clip_stage(config, pretrain, pick_device(config.device), TERMS[term][0])
            assert isinstance(stage, Replayed)
            stage.drawn = drawn
            folder = runs / f"seed{seed}" / term
            make_folder(folder)
            fit(stage, folder, SaveEvery(config.checkpoint_every))
            save_module(folder / CLIP, stage.module)
            found = look(config, folder / CLIP, folder.parent)
            row = {"config": given.config, "options": given.options, "seed": seed, "term": term, "found": found}
            append_row(given.out, row)
            shutil.rmtree(folder)  # else another --out would take it for what it trains
    print(table([row for row in known() if row["term"] in given.terms and row["seed"] < given.seeds]))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
