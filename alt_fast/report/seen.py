"""What a model saw in a video, as numbers: what pages and pictures draw."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

STRONGEST = 6  # entities that are shown over time


@dataclass(frozen=True)
class RegionInfo:
    """A token at the end of the encoder: patches in it, and the likeliest entities with their probabilities (eq. 4)."""

    size: int
    entities: list[tuple[str, float]]


@dataclass(frozen=True)
class FrameView:
    """regions: [L + 1, h * w], the token of every patch after each layer. colors: by token.

    tokens: the frame token first, then the regions. ranking: entities by the share of the tokens that aligned to them.
    """

    regions: Tensor
    colors: dict[int, int]
    tokens: list[RegionInfo]
    ranking: list[tuple[str, float]]


def strongest(frames: Iterable[FrameView]) -> list[str]:
    """Return the entities with the largest shares over all frames."""
    totals: Counter[str] = Counter()
    for frame in frames:
        totals.update(dict(frame.ranking))
    return [name for name, _ in totals.most_common(STRONGEST)]


@dataclass(frozen=True)
class View:
    """What the model sees at one r. r: of every layer. labels: by falling probability.

    unaligned: the first label's probability with entities drawn at random, the mean of some draws; None where nothing
    aligns. attention: of the decoder's queries to each frame, summing to 1. maps: texts, and where each is seen,
    [T, h * w] in [0, 1]: the first label as "action: LABEL", then entities, of which one may be called as the label is.
    """

    r: list[int | float]
    labels: list[tuple[str, float]]
    unaligned: float | None
    frames: list[FrameView]
    attention: list[float]
    maps: list[tuple[str, Tensor]]


@dataclass(frozen=True)
class Seen:
    """A video as a model saw it at several r.

    video: the name of its file. images: the frames as the model takes them. grid: patches of their height and width.
    views: by falling number of tokens; own: the number of the one at the model's own r. probed: whether the model uses
    its queries, in words; empty where that was not measured.
    """

    video: str
    images: list[Image.Image]
    grid: tuple[int, int]
    views: list[View]
    own: int
    probed: str = ""

    @property
    def view(self) -> View:
        """What the model sees at its own r."""
        return self.views[self.own]
