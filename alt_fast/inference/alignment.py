"""Is the alignment used, and is it right? Top-1 with other queries, and what tokens align to beside what they show."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alt_fast.data.annotations import Video
from alt_fast.data.augment import view_record
from alt_fast.data.config import ClipSpec
from alt_fast.data.dataset import EvalClips
from alt_fast.data.motion_shapes.drawing import Mask, Thing, by_patch
from alt_fast.data.motion_shapes.truth import things_in
from alt_fast.inference.scoring import EvalConfig, mean_over_views
from alt_fast.model.alt import ALT

MOST_VIDEOS = 1000
"""Videos that are looked at; of longer lists as many at random, always the same ones."""

USED_FROM = 0.05
"""Queries count as used when those of other videos cost this share of what top-1 is above chance (`is_used`)."""

_CHUNK = 4  # videos whose similarities [T, N', K] and entities [T, N', d] exist at a time


@dataclass(frozen=True)
class Aligned:
    """What the alignment of every video of a list was.

    frames: [V, T, d], the frame tokens. pooled: [V, T, d], what the queries are made of. entity: [V, T, n], of every
    aligned token. size: [V, T, N'], of all tokens. best: [V, C, T, n], the best entity of every category. certainty:
    [V, T, n], of the best entity by eq. 4, which is the probability that the noisy choice is it. entropy: of eq. 4's
    distribution, 1 for an even one. margin: cosine of the best entity less that of the next one. source: [V, T, P], the
    token of every patch (0 is the frame token).
    """

    frames: Tensor
    pooled: Tensor
    entity: Tensor
    size: Tensor
    best: Tensor
    certainty: Tensor
    entropy: Tensor
    margin: Tensor
    source: Tensor


@torch.inference_mode()
def probe_alignment(
    model: ALT, spec: ClipSpec, videos: Sequence[Video], classes: Tensor, testing: EvalConfig, name: str | None = None
) -> dict[str, Any]:
    """Return what the queries are worth on a list of videos, and how right they are where that is known.

    classes: embeddings [I, d]. One view of every video, unreadable ones aside. `*_top1` are top-1: of the model as it
    is ("top1"), with the queries of another video ("shuffled"), with those of the mean of all ("mean_query"), with
    entities that changed places ("permuted_entities") or were drawn at random ("random_entities"), one for each token
    though the model's choice be soft. "used" and "shuffled_error": of `is_used`; left out where queries are learned, as
    all videos have the same and another's change nothing. Of a model that aligns, also how sure and how varied its
    choices are; of Motion Shapes, how many frames and regions align to what they show, by category.
    """
    model.eval()
    drawn = torch.randperm(len(videos), generator=torch.Generator().manual_seed(0))[:MOST_VIDEOS]
    videos = [videos[number] for number in drawn.sort().values.tolist()]
    seen, readable = _align(model, spec, videos, testing, name)
    labels = torch.tensor([video.label for video in videos])[readable]
    if not len(labels):
        return {"videos": 0}
    rng = torch.Generator().manual_seed(0)
    others = others_of(len(labels), rng)

    def right(pooled: Tensor) -> Tensor:
        hits = []
        for part, frames, label in zip(*(x.split(_CHUNK) for x in (pooled, seen.frames, labels)), strict=True):
            z = model.answer(part.to(classes.device), frames.to(classes.device))
            hits.append(model.logits(z, classes).argmax(1).cpu() == label)
        return torch.cat(hits)

    def top1(pooled: Tensor) -> float:
        return share(right(pooled))

    def of_entities(entity: Tensor) -> Tensor:
        found = []
        for part, sizes in zip(entity.split(_CHUNK), seen.size.split(_CHUNK), strict=True):
            index, size = part.to(classes.device), sizes[..., : part.shape[2]].to(classes.device)
            found.append(model.alignment.pool(model.alignment.entities[index], index, size).cpu())
        return torch.cat(found)

    own, shuffled = right(seen.pooled), right(seen.pooled[others])
    found: dict[str, Any] = {
        "videos": len(labels),
        "chance": 1 / len(classes),
        "top1": share(own),
        "shuffled_top1": share(shuffled),
        "mean_query_top1": top1(seen.pooled.mean((0, 1)).expand_as(seen.pooled)),
    }
    if model.config.query != "learned":
        found["used"], found["shuffled_error"] = is_used(own, shuffled, 1 / len(classes))
    if model.corpus is None:
        return found
    count = len(model.corpus)
    permuted = torch.randperm(count, generator=rng)[seen.entity]
    drawn = torch.randint(count, seen.entity.shape, generator=rng)
    shares = torch.bincount(seen.entity.flatten(), minlength=count).double() / seen.entity.numel()
    found |= {
        "permuted_entities_top1": top1(of_entities(permuted)),
        "random_entities_top1": top1(of_entities(drawn)),
        "entities": count,
        "entities_used": int((shares > 0).sum()),
        "entities_effective": torch.special.entr(shares).sum().exp().item(),
        "certainty": seen.certainty.mean().item(),
        "entropy": seen.entropy.mean().item(),
        "margin": seen.margin.mean().item(),
    }
    return found | _accuracy(model, spec, [video for video, ok in zip(videos, readable, strict=True) if ok], seen)


def share(right: Tensor) -> float:
    """Return the share of videos that are right, [V] bool."""
    return int(right.sum()) / len(right)


def is_used(own: Tensor, shuffled: Tensor, chance: float) -> tuple[bool | None, float]:
    """Return whether a model uses its queries, and the standard error of what those of other videos cost.

    own, shuffled: [V] bool, which videos are right with their own queries and with another's. They are used where these
    cost USED_FROM of what top-1 is above chance, and more than two standard errors; not used where by two standard
    errors they cost less; None where the videos are too few to tell. The error is that of paired shares with half a
    video more in each of their four cells (Agresti and Min, 2005): nothing lost in a few videos is not surely nothing.
    """
    lost, won, videos = int((own & ~shuffled).sum()), int((shuffled & ~own).sum()), len(own) + 2
    cost = (lost - won) / videos
    error = (((lost + won + 1) / videos - cost**2) / videos) ** 0.5
    least = USED_FROM * (share(own) - chance)
    if cost > 2 * error and cost >= least:
        return True, error
    return (False if cost + 2 * error < least else None), error


def use_text(found: Mapping[str, Any]) -> str:
    """Say what the queries are worth, by what `probe_alignment` found."""
    if not found["videos"]:
        return "No video could be read."
    percent = {name: f"{100 * value:.1f} %" for name, value in found.items() if name.endswith("top1")}
    mean = f"with those of the mean {percent['mean_query_top1']}"
    if "used" not in found:
        return (
            f"Its queries are learned and the same for all videos: on {found['videos']} videos top-1 is "
            f"{percent['top1']}, {mean}."
        )
    says = {
        True: "The model uses its queries",
        False: "The model does not use its queries",
        None: f"{found['videos']} videos are too few to tell whether the model uses its queries",
    }[found["used"]]
    if found["used"] is None and _may_be_chance(found):
        says = f"Top-1 is not surely above chance, {100 * found['chance']:.1f} %: what queries are worth cannot be told"
    error = f"standard error of the difference {100 * found['shuffled_error']:.1f} points"
    return (
        f"{says}: on {found['videos']} videos top-1 is {percent['top1']}, with the queries of other videos "
        f"{percent['shuffled_top1']} ({error}), {mean}."
    )


def _may_be_chance(found: Mapping[str, Any]) -> bool:
    """Return whether top-1 is within two standard errors of chance, which files of earlier versions do not hold."""
    if "chance" not in found:
        return False
    chance = found["chance"]
    return bool(found["top1"] <= chance + 2 * (chance * (1 - chance) / found["videos"]) ** 0.5)


def others_of(count: int, rng: torch.Generator) -> Tensor:
    """Return for each of `count` >= 1 videos the number of another one; of a single video its own."""
    order = torch.randperm(count, generator=rng)
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    return others


def _align(
    model: ALT, spec: ClipSpec, videos: Sequence[Video], testing: EvalConfig, name: str | None
) -> tuple[Aligned, Tensor]:
    """Return what every readable video aligns to, and which are: [V] bool."""
    shapes: list[tuple[int, ...]] = []

    def look(video: Tensor) -> Tensor:
        tokens, size, source = model.encode(video)
        pooled, entity = model.alignment(tokens, size, None)
        aligned = tokens[:, :, : entity.shape[2]]  # the frame token alone where regions do not align
        choices = _choices(model, aligned)
        parts = [tokens[:, :, 0], pooled, entity, size, *choices, source[:, :, 1:]]
        shapes[:] = [tuple(part.shape[1:]) for part in parts]
        return torch.cat([part.flatten(1).float() for part in parts], 1)

    one_view = EvalConfig(testing.batch_size, loading=testing.loading)
    device = model.logit_scale.device
    width = look(torch.zeros(1, spec.num_frames, 3, *spec.size, device=device)).shape[1]
    rows, causes, _ = mean_over_views(EvalClips(videos, spec), one_view, device, look, width, name)
    readable = torch.tensor([str(video.path) not in causes for video in videos])
    widths = [int(np.prod(shape)) for shape in shapes]
    parts = (part.unflatten(1, shape) for part, shape in zip(rows[readable].split(widths, 1), shapes, strict=True))
    frames, pooled, entity, size, best, certainty, entropy, margin, source = parts
    seen = Aligned(frames, pooled, entity.long(), size, best.long(), certainty, entropy, margin, source.long())
    return seen, readable


def _choices(model: ALT, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the best entity of every category [B, C, T, n] of tokens [B, T, n, d]; certainty, entropy, margin."""
    if model.corpus is None:
        empty = tokens.new_empty(*tokens.shape[:2], 0)
        return empty[:, None], empty, empty, empty
    entities = F.normalize(model.alignment.entities.float(), dim=-1)
    members = _members(model)
    found = []
    for part in tokens.split(_CHUNK):
        cosine = F.normalize(part.float(), dim=-1) @ entities.T
        logits = (cosine / model.alignment.tau).log_softmax(-1)
        top = cosine.topk(min(2, len(entities)), dim=-1).values
        best = [cosine[..., own].argmax(-1) for own in members.values()]
        best = [own.to(part.device)[place] for own, place in zip(members.values(), best, strict=True)]
        entropy = -(logits.exp() * logits).sum(-1) / max(1.0, float(np.log(len(entities))))
        found.append((torch.stack(best, 1), logits.amax(-1).exp(), entropy, top[..., 0] - top[..., -1]))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]


def _members(model: ALT) -> dict[str, Tensor]:
    """Return the corpus's categories with the indices of their entities."""
    assert model.corpus is not None
    categories = [entity.category for entity in model.corpus.entities]
    return {
        name: torch.tensor([i for i, c in enumerate(categories) if c == name]) for name in dict.fromkeys(categories)
    }


def _accuracy(model: ALT, spec: ClipSpec, videos: Sequence[Video], seen: Aligned) -> dict[str, Any]:
    """Return the share of frames and regions that align to what they show, by category and over "all".

    A frame token is right when its best entity is true of anything in the frame. Of the regions, those count that have
    most of a thing; right is an entity true of the thing. Nothing for videos of which it is not known.
    """
    assert model.corpus is not None
    units = [entity.unit for entity in model.corpus.entities]
    known = frozenset(units)  # what no entity of the model says cannot be right or wrong
    patch, record = model.encoder.visual.patch_size, view_record(spec.augment, spec.num_frames)
    categories = ["all", *_members(model)]
    hits: dict[str, Counter[str]] = defaultdict(Counter)

    def true_of(thing: Thing, category: str) -> frozenset[str]:
        of_all = frozenset().union(*thing.names.values())
        return (of_all if category == "all" else thing.names.get(category, frozenset())) & known

    for number, video in enumerate(videos):
        frames = things_in(video.path, record, spec.size)
        if frames is None:
            return {}
        # [1 + C, T, n]: what is chosen of all entities, then of each category
        chosen = torch.cat([seen.entity[number][None], seen.best[number]])
        for t, things in enumerate(frames):
            for category, choice in zip(categories, chosen[:, t].tolist(), strict=True):
                everything = frozenset().union(*(true_of(thing, category) for thing in things))
                if everything:
                    hits["frame"][category] += 1
                    hits["frame_right"][category] += units[choice[0]] in everything
                for thing in things if len(choice) > 1 else ():
                    names, place = true_of(thing, category), region_of(thing.mask, patch, seen.source[number, t])
                    if names and place is not None:
                        hits["region"][category] += 1
                        hits["region_right"][category] += units[choice[place]] in names
    return {
        f"{kind}_accuracy": {name: hits[f"{kind}_right"][name] / count for name, count in hits[kind].items()}
        for kind in ("frame", "region")
        if hits[kind]
    }


def region_of(mask: Mask, patch: tuple[int, int], source: Tensor) -> int | None:
    """Return the token with most of a thing; None for what cannot be seen. source: [P], the token of every patch."""
    total = np.bincount(source.numpy(), weights=by_patch(mask, patch).ravel())
    return int(total.argmax()) if total.max() > 0 else None
