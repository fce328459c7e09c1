"""Clips of Motion Shapes, levels 2 and 3, as `benchmarks.alignment` trains and tests on them, and the truth of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from alt_fast.data.motion_shapes.drawing import Thing, by_patch
from alt_fast.data.motion_shapes.level2 import Triple, label_of
from alt_fast.model.alt import ALT


@dataclass(frozen=True)
class _Clips:
    """A list of V clips.

    label: [V]. truth: [V, 5] of the corpus: tool, actor, background and two tools that lie about, the carried one again
    for each that is not there.
    """

    label: Tensor
    truth: Tensor

    def take(self, index: Tensor) -> Self:
        return replace(self, **{part.name: getattr(self, part.name)[index] for part in fields(self)})


@dataclass(frozen=True)
class Tokens(_Clips):
    """What one tower sees. things, shown: of `pool_things`, [V, T, 5, d] and [V, T, N' - 1], where they are known."""

    tokens: Tensor
    size: Tensor
    things: Tensor
    shown: Tensor

    def seen(self, model: ALT) -> "Tokens":
        """Return themselves: the tower has seen them."""
        return self


@dataclass(frozen=True)
class Videos(_Clips):
    """Clips for a tower that trains along. video: [V, T, 3, H, W]."""

    video: Tensor

    def seen(self, model: ALT) -> Tokens:
        """Return what the tower of a model sees in them."""
        parts = zip(*(model.encode(part) for part in self.video.split(32)), strict=True)
        tokens, size, _ = (torch.cat(part) for part in parts)
        nothing = torch.empty(len(tokens), 0)
        return Tokens(self.label, self.truth, tokens, size, nothing, nothing)


Clips = Tokens | Videos


@dataclass(frozen=True)
class Texts:
    """Embeddings of a list's classes, those of a tool beside each other.

    classes: [I, d], of their labels. tool: [I], numbers of their tools. by_tool: [I, tools, d], of each class's label
    with every tool of the list in turn.
    """

    classes: Tensor
    tool: Tensor
    by_tool: Tensor

    @classmethod
    def of(cls, triples: Sequence[Triple], embed: Callable[[list[str]], Tensor]) -> Self:
        """Embed the labels of classes, by embed(labels) -> [n, d], which takes no label twice."""
        tools = list(dict.fromkeys(tool for _, _, tool in triples))
        carried = list(dict.fromkeys(triple[:2] for triple in triples))
        labels = [label_of((actor, motion, tool)) for actor, motion in carried for tool in tools]
        by_tool = embed(labels).view(len(carried), len(tools), -1)
        number = [carried.index(triple[:2]) for triple in triples]
        tool = torch.tensor([tools.index(triple[2]) for triple in triples])
        return cls(embed([label_of(triple) for triple in triples]), tool, by_tool[number])


@dataclass(frozen=True)
class Seen:
    """Every list at one r, and the texts of the trained and of the unseen classes."""

    train: Clips
    test: Clips
    unseen: Clips
    few_shot: Clips
    trained_texts: Texts
    unseen_texts: Texts


MOST_THINGS = 5  # in a frame: background, two tools that lie about, the carried one and the actor


def pool_things(
    frames: Sequence[Sequence[Thing]], tokens: Tensor, source: Tensor, patch: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the token of everything in T frames, [T, 5, d], and the number of what each region shows most of.

    frames: what is in them, the background first. tokens: [T, N', d]. source: [T, P] int64, the token of every patch.
    patch: its height and width. A thing's token is the mean over patches by the share of them that it fills; what
    cannot be seen, and what would make five of fewer things, has the background's. The second: [T, N' - 1].
    """
    things, shown = [], []
    for there, seen, token in zip(frames, tokens, source, strict=True):
        filled = torch.from_numpy(by_patch(np.stack([thing.mask for thing in there]), patch)).flatten(1)
        share = seen.new_zeros(MOST_THINGS, len(seen))  # of every thing in every token, in patches
        share[: len(there)].index_add_(1, token, filled)
        shown.append(share[:, 1:].argmax(0))
        share = torch.where(share.sum(1, keepdim=True) > 0, share, share[:1])
        things.append(share @ seen / share.sum(1, keepdim=True))
    return torch.stack(things), torch.stack(shown)
