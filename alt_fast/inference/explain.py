"""What a model saw in a video: regions of every layer, the entities they aligned to, attention over time."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from alt_fast.data.augment import unpaint
from alt_fast.data.config import ClipSpec
from alt_fast.inference.predict import check_not_blank, entity_shares, load_video, rank
from alt_fast.inference.relevance import relevance_maps
from alt_fast.model.alt import ALT
from alt_fast.model.encoder import MergeSchedule, RegionEncoder, Regions
from alt_fast.progress import Progress
from alt_fast.report.explanation import Explanation
from alt_fast.report.seen import FrameView, RegionInfo, View, strongest
from alt_fast.tome.schedule import merge_schedule

ENTITIES_PER_TOKEN = 5
DRAWS = 16  # of entities at random
PERSISTS = 0.3  # intersection over union from which a region is the same one in the next frame


@torch.inference_mode()
def explain(
    path: str | Path,
    model: ALT,
    spec: ClipSpec,
    labels: Sequence[str],
    classes: Tensor,
    reductions: Sequence[int] | None = None,
    progress: bool = True,
) -> Explanation:
    """Run a video through the model and keep what it saw. Raises VideoError, also for one that shows nothing.

    classes: embeddings [I, d] of the labels. reductions: r to look at besides the model's own; by default 0, half of
    it, and half as much again. progress: whether how far it is is shown.
    """
    model.eval()
    video = load_video(path, spec).to(model.logit_scale.device)
    check_not_blank(path, video, spec)
    own = model.encoder.schedule
    others = _scaled(own) if reductions is None else [merge_schedule(r, len(own)) for r in reductions]
    schedules = sorted({tuple(schedule): schedule for schedule in [own, *others]}.values(), key=sum)
    name = Path(path).name
    views = [
        view_at(model, video, classes, labels, schedule) for schedule in Progress(schedules, name, "r", shown=progress)
    ]
    views.sort(key=lambda view: -len(view.frames[0].tokens))  # r may be tokens here and fractions there
    patch = model.encoder.visual.patch_size
    grid = tuple(side // step for side, step in zip(model.image_size, patch, strict=True))
    images = [to_pil_image(frame) for frame in unpaint(video[0], spec.augment.normalize).cpu()]
    return Explanation(name, images, (grid[0], grid[1]), views, [view.r for view in views].index(own))


def view_at(model: ALT, video: Tensor, classes: Tensor, labels: Sequence[str], schedule: MergeSchedule) -> View:
    """Return what the model, merging by `schedule`, sees in a video [1, T, 3, H, W]. classes: [I, d], of the labels."""
    seen, regions = trace_layers(model.encoder, video[0], schedule)
    pooled, entity = model.alignment(seen.tokens[None], seen.size[None], None)
    frame_tokens = seen.tokens[None, :, 0]
    logits = model.logits(model.answer(pooled, frame_tokens), classes)
    labelled = rank(labels, logits[0].float().softmax(-1))
    attention = model.decoder.frame_weights(model.alignment.queries(pooled), frame_tokens)[0].tolist()
    entities = token_entities(model, seen.tokens)
    colors = region_colors(regions[:, -1])
    frames = [
        FrameView(
            regions[t],
            colors[t],
            [RegionInfo(round(size), found) for size, found in zip(seen.size[t].tolist(), entities[t], strict=True)],
            [(found.entity, found.share) for found in entity_shares(model.corpus, entity[0, t].tolist())],
        )
        for t in range(len(regions))
    ]
    first = labels.index(labelled[0][0])
    texts = [(f"action: {labels[first]}", classes[first])]
    if model.corpus is not None:
        known = dict(zip(model.corpus.names, model.alignment.entities, strict=True))
        texts += [(name, known[name]) for name in strongest(frames)]
    names, embeddings = zip(*texts, strict=True)
    maps = relevance_maps(model.encoder, video[0], torch.stack(embeddings), schedule)
    unaligned = None
    if model.corpus is not None:
        drawn = torch.randint(len(model.corpus), (DRAWS, *entity.shape[1:]), generator=torch.Generator().manual_seed(0))
        drawn, size = drawn.to(entity.device), seen.size[None, :, : entity.shape[2]]
        pooled = model.alignment.pool(model.alignment.entities[drawn], drawn, size)
        logits = model.logits(model.answer(pooled, frame_tokens.expand(DRAWS, -1, -1)), classes)
        unaligned = logits.softmax(-1)[:, first].mean().item()
    return View(list(schedule), labelled, unaligned, frames, attention, list(zip(names, maps, strict=True)))


def _scaled(schedule: Sequence[int | float]) -> list[list[int | float]]:
    """Return no merging, half of a schedule, and half as much again."""
    return [
        [min(0.5, share * r) if isinstance(r, float) else round(share * r) for r in schedule] for share in (0, 0.5, 1.5)
    ]


def trace_layers(encoder: RegionEncoder, frames: Tensor, schedule: MergeSchedule) -> tuple[Regions, Tensor]:
    """Return what the encoder sees in T frames, and how it got there.

    The second: the token of every patch before the first layer and after each, [T, L + 1, h * w] int64; 0 is the frame
    token.
    """
    tokens = encoder.start(frames)
    sources = [tokens.source()]
    for layer in encoder.layers(schedule):
        tokens = encoder.run_layer(*layer, tokens)
        sources.append(tokens.source())
    seen = encoder.finish(tokens)
    return seen, torch.stack([source[:, 1:].long().cpu() for source in sources], 1)


def token_entities(model: ALT, tokens: Tensor) -> list[list[list[tuple[str, float]]]]:
    """Return the likeliest entities of all tokens [T, N', d], without eq. 4's noise; empty without a corpus."""
    if model.corpus is None:
        return [[[] for _ in frame] for frame in tokens]
    unit = torch.nn.functional.normalize(tokens.float(), dim=-1)
    known = torch.nn.functional.normalize(model.alignment.entities.float(), dim=-1)
    best = (unit @ known.T / model.config.tau).softmax(-1).topk(min(ENTITIES_PER_TOKEN, len(known)), dim=-1)
    return [
        [
            [(model.corpus.names[i], p) for i, p in zip(index, value, strict=True)]
            for index, value in zip(indices, values, strict=True)
        ]
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def region_colors(regions: Tensor) -> list[dict[int, int]]:
    """Return a number for the colour of every region of every frame, from its patches [T, h * w].

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
