"""Name the action in one video."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from alt_fast.corpus import Corpus
from alt_fast.data.augment import color_map, paint, view_record
from alt_fast.data.config import ClipSpec
from alt_fast.data.pyav import read_clip
from alt_fast.model.alt import ALT
from alt_fast.model.config import Head


@dataclass(frozen=True)
class EntityShare:
    """An entity, and the share of a frame's tokens that aligned to it, 0 to 1."""

    entity: str
    category: str
    share: float


@dataclass(frozen=True)
class Prediction(Sequence[tuple[str, float]]):
    """The likeliest labels of a video with their probabilities, likeliest first: a sequence of (label, probability).

    frames: what the tokens of each frame aligned to, by falling share; empty where nothing aligns.
    """

    video: str
    labels: list[tuple[str, float]]
    frames: list[list[EntityShare]]

    @overload
    def __getitem__(self, index: int) -> tuple[str, float]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, float]]: ...

    def __getitem__(self, index: int | slice) -> tuple[str, float] | list[tuple[str, float]]:
        return self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return iter(self.labels)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return {
            "video": self.video,
            "labels": [{"label": label, "probability": probability} for label, probability in self.labels],
            "frames": [[asdict(share) for share in frame] for frame in self.frames],
        }


def load_video(path: str | Path, spec: ClipSpec) -> Tensor:
    """Return the middle frames of a video's segments as the model takes them, [1, T, 3, H, W]. Raises VideoError."""
    record = view_record(spec.augment, spec.num_frames)
    pixels = torch.from_numpy(read_clip(path, record, spec.size))
    return paint(pixels[None], color_map(record)[None], spec.augment)


@torch.inference_mode()
def predict(
    path: str | Path, model: ALT, spec: ClipSpec, labels: Sequence[str], classes: Tensor, head: Head = "alt"
) -> Prediction:
    """Score a video against all labels. classes: their embeddings [I, d], on the model's device. Raises VideoError."""
    video = load_video(path, spec).to(classes.device)
    probabilities, entity = model.probabilities(video, classes, head)
    frames = [entity_shares(model.corpus, frame) for frame in entity[0].tolist()]
    return Prediction(str(path), rank(labels, probabilities[0]), [frame for frame in frames if frame])


def rank(labels: Sequence[str], probabilities: Tensor) -> list[tuple[str, float]]:
    """Return labels with their probabilities [I], by falling probability."""
    return sorted(zip(labels, probabilities.tolist(), strict=True), key=lambda pair: -pair[1])


def entity_shares(corpus: Corpus | None, entity: Sequence[int]) -> list[EntityShare]:
    """Return entities by the share of tokens that aligned to them. entity: the corpus index of each token."""
    if corpus is None:
        return []
    return [
        EntityShare(corpus.entities[i].unit, corpus.entities[i].category, count / len(entity))
        for i, count in Counter(entity).most_common()
    ]
