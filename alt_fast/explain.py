"""Why the model says so: regions, their entities, and what weighed how much, as a page to look at.

python -m alt_fast.explain clip.mp4 --checkpoint runs/mine --out report.html
python -m alt_fast.explain clip.mp4 --checkpoint runs/mine --out report.png
python -m alt_fast.explain clip.mp4 --checkpoint runs/mine --out overlay.webm
"""

import argparse
import html
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from alt_fast.checkpoint import CheckpointError, TrainedModel, load
from alt_fast.classify import load_video, read_labels
from alt_fast.corpus.options import add_corpus_options, use_corpus
from alt_fast.data.annotations import AnnotationError
from alt_fast.data.augment import MEAN_STD
from alt_fast.data.decode import VideoError
from alt_fast.encoder import RegionEncoder, Regions
from alt_fast.explain_page import fill_page, page_data, write_page
from alt_fast.explain_pictures import write_overlay, write_picture
from alt_fast.model import ALT
from alt_fast.run_folder import RunError, pick_device
from alt_fast.tome import merge_schedule

WRITERS: dict[str, Callable[[Path, "Explanation"], None]] = {
    ".html": write_page,
    ".png": write_picture,
    ".webm": write_overlay,
}
ENTITIES_PER_TOKEN = 5
PERSISTS = 0.3  # intersection over union from which a region is the same one in the next frame


@dataclass(frozen=True)
class Token:
    """A token at the end of the encoder: patches in it, and the likeliest entities with their probabilities (eq. 4)."""

    size: int
    entities: list[tuple[str, float]]


@dataclass(frozen=True)
class Frame:
    """regions: [L + 1, h * w], the token of every patch after each layer. colors: by token.

    tokens: the frame token first, then the regions. ranking: entities by the share of the tokens that aligned to them.
    """

    regions: Tensor
    colors: dict[int, int]
    tokens: list[Token]
    ranking: list[tuple[str, float]]


@dataclass(frozen=True)
class View:
    """What the model sees at one r. r: of every layer. labels: by falling probability.

    attention: of the decoder's queries to each frame, summing to 1.
    """

    r: list[int | float]
    labels: list[tuple[str, float]]
    frames: list[Frame]
    attention: list[float]


@dataclass(frozen=True)
class Explanation:
    """images: the frames as the model takes them. grid: patches of their height and width.

    views: by falling number of tokens; own: the number of the one at the model's own r.
    """

    video: str
    images: list[Image.Image]
    grid: tuple[int, int]
    views: list[View]
    own: int

    @property
    def view(self) -> View:
        """What the model sees at its own r."""
        return self.views[self.own]

    def _repr_html_(self) -> str:
        """The page, as notebooks show it: in a frame of its own."""
        page = fill_page("explain.html", page_data(self))
        return f'<iframe srcdoc="{html.escape(page)}" width="100%" height="1000" style="border: 0"></iframe>'


@torch.inference_mode()
def explain(
    path: str | Path,
    trained: TrainedModel,
    labels: Sequence[str],
    reductions: Sequence[int] | None = None,
    classes: Tensor | None = None,
    progress: bool = True,
) -> Explanation:
    """Run a video through the model and keep what it saw. Raises VideoError.

    reductions: r to look at besides the model's own; by default 0, half of it, and half as much again.
    classes: embeddings [I, d] of the labels, where they are known. progress: whether a terminal gets a progress bar.
    """
    model = trained.model.eval()
    video = load_video(path, trained).to(model.logit_scale.device)
    if classes is None:
        classes = model.text.classes(labels, trained.templates)
    encoder = model.encoder
    own = encoder.schedule
    others = _scaled(own) if reductions is None else [merge_schedule(r, len(own)) for r in reductions]
    schedules = sorted({tuple(schedule): schedule for schedule in [own, *others]}.values(), key=sum)
    try:
        views = []
        for schedule in tqdm(schedules, Path(path).name, unit="r", leave=False, disable=None if progress else True):
            encoder.schedule = schedule
            views.append(look(model, video, classes, labels))
    finally:
        encoder.schedule = own
    patch = encoder.visual.patch_size
    grid = tuple(side // step for side, step in zip(model.image_size, patch, strict=True))
    images = _pictures(video[0], trained.augment.normalize)
    return Explanation(str(path), images, (grid[0], grid[1]), views, schedules.index(own))


def look(model: ALT, video: Tensor, classes: Tensor, labels: Sequence[str]) -> View:
    """What the model, merging as it is set to, sees in a video [1, T, 3, H, W]. classes: [I, d], of the labels."""
    seen, regions = trace_layers(model.encoder, video[0])
    queries, entity = model.alignment(seen.tokens[None], None)
    frame_tokens = seen.tokens[None, :, 0]
    logits = model.logits(model.decoder(queries, frame_tokens), classes)
    probabilities = logits[0].float().softmax(-1).tolist()
    ranked = sorted(zip(labels, probabilities, strict=True), key=lambda pair: -pair[1])
    attention = model.decoder.frame_weights(queries, frame_tokens)[0].tolist()
    entities = token_entities(model, seen.tokens)
    colors = region_colors(regions[:, -1])
    frames = [
        Frame(
            regions[t],
            colors[t],
            [Token(round(size), found) for size, found in zip(seen.size[t].tolist(), entities[t], strict=True)],
            ranking(model, entity[0, t].tolist()),
        )
        for t in range(len(regions))
    ]
    return View(model.encoder.schedule, ranked, frames, attention)


def _scaled(schedule: Sequence[int | float]) -> list[list[int | float]]:
    """No merging, half of a schedule, and half as much again."""
    return [
        [min(0.5, share * r) if isinstance(r, float) else round(share * r) for r in schedule] for share in (0, 0.5, 1.5)
    ]


def _pictures(frames: Tensor, normalization: str) -> list[Image.Image]:
    """Frames [T, 3, H, W] as they were before they were normalised."""
    mean, std = (torch.tensor(values, device=frames.device).view(3, 1, 1) for values in MEAN_STD[normalization])
    return [to_pil_image(frame) for frame in ((frames * std + mean) * 255).round().clamp(0, 255).byte().cpu()]


def trace_layers(encoder: RegionEncoder, frames: Tensor) -> tuple[Regions, Tensor]:
    """What the encoder sees in T frames, and how it got there.

    The second: the token of every patch before the first layer and after each, [T, L + 1, h * w] int64; 0 is the frame
    token.
    """
    tokens = encoder.start(frames)
    sources = [tokens.source]
    for layer in encoder.layers():
        tokens = encoder.run_layer(*layer, tokens)
        sources.append(tokens.source)
    seen = encoder.finish(tokens)
    return seen, torch.stack([source[:, 1:].long().cpu() for source in sources if source is not None], 1)


def token_entities(model: ALT, tokens: Tensor) -> list[list[list[tuple[str, float]]]]:
    """The likeliest entities of all tokens of all frames [T, N', d], without eq. 4's noise; empty without a corpus."""
    if model.corpus is None:
        return [[[] for _ in frame] for frame in tokens]
    unit = torch.nn.functional.normalize(tokens.float(), dim=-1)
    known = torch.nn.functional.normalize(model.alignment.entities.float(), dim=-1)
    best = (unit @ known.T / model.config.tau).softmax(-1).topk(min(ENTITIES_PER_TOKEN, len(known)), dim=-1)
    names = [entity.unit for entity in model.corpus.entities]
    return [
        [
            [(names[i], p) for i, p in zip(index, value, strict=True)]
            for index, value in zip(indices, values, strict=True)
        ]
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def ranking(model: ALT, entity: Sequence[int]) -> list[tuple[str, float]]:
    """Entities by the share of tokens that aligned to them."""
    if model.corpus is None or not entity:
        return []
    names = model.corpus.entities
    return [(names[i].unit, count / len(entity)) for i, count in Counter(entity).most_common()]


def region_colors(regions: Tensor) -> list[dict[int, int]]:
    """A number for the colour of every region of every frame, from its patches [T, h * w].

    A region keeps the colour of the region of the frame before that it overlaps most with, if by PERSISTS at least.
    """
    colors: list[dict[int, int]] = []
    fresh = 0
    for t, frame in enumerate(regions):
        ids = frame.unique().tolist()
        inherited: dict[int, int] = {}
        if t:
            before = regions[t - 1]
            pairs = []
            for mine in ids:
                here = frame == mine
                for other in before[here].unique().tolist():
                    there = before == other
                    pairs.append((((here & there).sum() / (here | there).sum()).item(), mine, other))
            taken: set[int] = set()
            for overlap, mine, other in sorted(pairs, reverse=True):
                if overlap >= PERSISTS and mine not in inherited and other not in taken:
                    inherited[mine] = colors[t - 1][other]
                    taken.add(other)
        for mine in ids:
            if mine not in inherited:
                inherited[mine] = fresh
                fresh += 1
        colors.append(inherited)
    return colors


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m alt_fast.explain",
        description="Show what the model saw in a video: merged regions, the entities they aligned to, actions.",
    )
    parser.add_argument("video", metavar="VIDEO", help="video file")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder or .safetensors file")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="page to write (.html), picture (.png) or video (.webm)"
    )
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="texts to choose from, or one file")
    parser.add_argument(
        "--r",
        type=int,
        nargs="*",
        metavar="R",
        help="what a page's slider has besides the model's own r; default: 0, half and one and a half of it",
    )
    add_corpus_options(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        write = WRITERS.get(arguments.out.suffix)
        if write is None:
            raise RunError(f"--out must end in {', '.join(WRITERS)}, got {arguments.out}")
        if write is write_page:
            reductions = arguments.r
        elif arguments.r is None:
            reductions = []
        else:
            raise RunError("--r is for pages (.html): pictures and videos show the model's own r")
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        trained = load(arguments.checkpoint)
        trained.model.to(pick_device(arguments.device))
        use_corpus(trained.model, arguments.corpus, arguments.categories)
        labels = read_labels(arguments.labels) if arguments.labels else trained.classes
        write(arguments.out, explain(arguments.video, trained, labels, reductions))
    except (AnnotationError, CheckpointError, RunError, VideoError, ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
