"""Name the action in one video, or in many at once."""

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from alt_fast.corpus import Corpus
from alt_fast.data.annotations import Video
from alt_fast.data.augment import color_map, is_blank, paint, view_record
from alt_fast.data.batch import Failure
from alt_fast.data.config import ClipSpec
from alt_fast.data.dataset import EvalClips, batched
from alt_fast.data.decode import VideoError
from alt_fast.data.loader import Loader, open_backend
from alt_fast.data.pyav import read_clip
from alt_fast.errors import RunError
from alt_fast.inference.scoring import EvalConfig
from alt_fast.model.alt import ALT
from alt_fast.model.config import Head

ONE_COLOUR = "every frame is of one colour"
"""Why nothing can be told of a video, or of a part."""


@dataclass(frozen=True)
class EntityShare:
    """An entity by its name (`Corpus.names`), and the share of a frame's tokens that aligned to it, 0 to 1."""

    entity: str
    category: str
    share: float


@dataclass(frozen=True)
class Prediction(Sequence[tuple[str, float]]):
    """The likeliest labels of a video with their probabilities, likeliest first: a sequence of (label, probability).

    frames: what the tokens of each frame aligned to, by falling share; empty where nothing aligns. Several views stand
    one after the other.
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


def check_not_blank(path: str | Path, video: Tensor, spec: ClipSpec) -> None:
    """Raise VideoError for frames [1, T, 3, H, W], of `load_video`, that are all of one colour."""
    if is_blank(video, spec.augment.normalize).all():
        raise VideoError(path, f"nothing can be told: {ONE_COLOUR}")


@dataclass(frozen=True)
class Choice:
    """Labels to choose from, their embeddings [I, d] on the model's device, and how many to keep; None keeps all."""

    labels: Sequence[str]
    classes: Tensor
    top_k: int | None = None

    def prediction(self, video: str, probabilities: Tensor, entity: Tensor, corpus: Corpus | None) -> Prediction:
        """Return what is said of a video. probabilities: [I]. entity: [T, n], of what `corpus` holds."""
        frames = [entity_shares(corpus, frame) for frame in entity.tolist()]
        ranked = rank(self.labels, probabilities)[: self.top_k]
        return Prediction(video, ranked, [frame for frame in frames if frame])


@torch.inference_mode()
def predict(path: str | Path, model: ALT, spec: ClipSpec, choice: Choice, head: Head = "alt") -> Prediction:
    """Score a video against all labels. Raises VideoError, also for one that shows nothing."""
    video = load_video(path, spec).to(choice.classes.device)
    check_not_blank(path, video, spec)
    probabilities, entity = model.probabilities(video, choice.classes, head)
    return choice.prediction(str(path), probabilities[0], entity[0], model.corpus)


def shares_of(count: int, size: int) -> list[range]:
    """Return the numbers of `count` videos, by `size` that run together; the last ones are fewer."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def predict_batches(
    paths: Sequence[str | Path],
    model: ALT,
    spec: ClipSpec,
    choice: Choice,
    testing: EvalConfig,
    shares: Sequence[range] | None = None,
) -> Generator[list[Prediction | Failure], None, None]:
    """Score videos against all labels, `testing.batch_size` clips at once, while other processes decode the next ones.

    Yields what was found by share, in order; of several views the mean probabilities; a Failure for what cannot be
    read or shows nothing. shares: numbers of the videos to score, those that run together in a range; by default all,
    `testing.batch_size` in each. What is said of a video depends on its share, in the last bits, and on nothing else:
    not on who else scores what.
    """
    model.eval()
    size, device = testing.batch_size, choice.classes.device
    shares = shares_of(len(paths), size) if shares is None else shares
    clips = EvalClips([Video(Path(path), 0) for path in paths], spec, testing.crops, testing.clips)
    views = range(clips.views)
    keys = [list(batched([(number, view) for number in share for view in views], size)) for share in shares]
    backend, _ = open_backend(testing.loading.loader, clips, device, threads=max(1, testing.loading.workers))
    loader = Loader(clips, list(chain.from_iterable(keys)), backend, testing.loading)
    with closing(iter(loader)) as loaded:  # an error that a session keeps would keep what decodes, too
        for share, own in zip(shares, keys, strict=True):
            scores, entities, blanks, causes = [], [], [], dict[str, str]()
            for batch in islice(loaded, len(own)):
                with torch.inference_mode():
                    probabilities, entity = model.probabilities(batch.video, choice.classes, testing.head)
                scores.append(probabilities.cpu())
                entities.append(entity.cpu())
                blanks.append(is_blank(batch.video, spec.augment.normalize).all(1).cpu())
                causes |= dict(batch.failures)
            mean = torch.cat(scores).unflatten(0, (-1, clips.views)).mean(1)
            seen = torch.cat(entities).unflatten(0, (-1, clips.views)).flatten(1, 2)
            blank = torch.cat(blanks).unflatten(0, (-1, clips.views)).all(1).tolist()
            found: list[Prediction | Failure] = []
            for number, probabilities, entity, is_nothing in zip(share, mean, seen, blank, strict=True):
                nothing = f"nothing can be told: {ONE_COLOUR}" if is_nothing else None
                cause = causes.get(str(clips.videos[number].path), nothing)
                name = str(paths[number])
                found.append(
                    Failure(name, cause) if cause else choice.prediction(name, probabilities, entity, model.corpus)
                )
            yield found


def rank(labels: Sequence[str], probabilities: Tensor) -> list[tuple[str, float]]:
    """Return labels with their probabilities [I], by falling probability. Raises RunError for NaN."""
    check_finite(probabilities)
    return sorted(zip(labels, probabilities.tolist(), strict=True), key=lambda pair: -pair[1])


def check_finite(probabilities: Tensor) -> None:
    """Raise RunError for scores by which nothing can be told."""
    if not probabilities.isfinite().all():
        raise RunError("the model's scores are not finite (NaN): its weights are broken, or its numbers overflow")


def entity_shares(corpus: Corpus | None, entity: Sequence[int]) -> list[EntityShare]:
    """Return entities by the share of tokens that aligned to them. entity: the corpus index of each token."""
    if corpus is None:
        return []
    return [
        EntityShare(corpus.names[i], corpus.entities[i].category, count / len(entity))
        for i, count in Counter(entity).most_common()
    ]
