"""Judge pictures that come one by one: each is seen once, and the last T of them are a clip."""

import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alt_fast.data.augment import color_map, crop_box, cut_picture, is_blank, paint, view_record
from alt_fast.data.capture import Capture, Clock, Picture
from alt_fast.data.decode import Frames, Planes
from alt_fast.errors import ArgumentError
from alt_fast.inference.predict import EntityShare, entity_shares, rank
from alt_fast.inference.speed import as_cuda_graph
from alt_fast.inference.trained import TrainedModel
from alt_fast.model.alt import FrameFeatures
from alt_fast.model.config import Head

WINDOW = 4.0  # seconds that a clip spans, where nobody says another number
_LOOK = 0.02  # seconds between looks for the first picture


class Recogniser:
    """A trained model in two halves: `see` is what a picture costs, `judge` what a clip of seen pictures costs besides.

    labels: texts to choose from; by default the classes trained on. head: who scores; by default the model's own.
    cuda_graphs: see one picture, and judge, by one launch each, of the model as it is now: it must stay so.

    What it says of a clip is what `TrainedModel.classify` says of a video with these frames.

    Raises ArgumentError for no labels or the same one twice, a head that was not trained, a model whose frames look at
    each other, and CUDA graphs of one that is on no GPU.
    """

    def __init__(
        self,
        trained: TrainedModel,
        labels: Sequence[str] | None = None,
        head: Head | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        if cuda_graphs and trained.device.type != "cuda":
            raise ArgumentError(f"CUDA graphs need a model on a GPU, and this one is on {trained.device}")
        self.trained, self.head = trained, trained.head_of(head)
        choice = trained.choice(labels)
        self.labels, self._classes = choice.labels, choice.classes
        self._record = view_record(trained.augment, 1)
        trained.model.eval()
        self._see_one, self._score = self._see, self._score_clip
        self._warm_up(cuda_graphs)

    def _see(self, frames: Tensor) -> FrameFeatures:
        return self.trained.model.see(frames, self.head)

    def _score_clip(self, *clip: Tensor) -> Tensor:
        return self.trained.model.score(FrameFeatures(*clip), self._classes, self.head)

    @torch.inference_mode()
    def _warm_up(self, cuda_graphs: bool) -> None:
        """Do what only first calls do, on blank pictures."""
        blank = self._prepare([np.zeros((3, *self.trained.spec.size), np.uint8)])
        clip = as_clip(join([self._see(blank)] * self.clip_frames))
        self._score_clip(*clip)
        if cuda_graphs:
            self._see_one, self._score = as_cuda_graph(self._see, blank), as_cuda_graph(self._score_clip, *clip)

    @property
    def clip_frames(self) -> int:
        """How many frames a clip has, T."""
        return self.trained.spec.num_frames

    def cut(self, planes: Planes) -> Frames:
        """Crop and resize a picture of any size as test clips are: uint8 [3, *size]."""
        return cut_picture(self._record, self.trained.spec.size, planes)

    @torch.inference_mode()
    def see(self, cuts: Sequence[Frames]) -> FrameFeatures:
        """Encode F pictures. cuts: of `cut`."""
        frames = self._prepare(cuts)
        return self._see_one(frames) if len(frames) == 1 else self._see(frames)

    def _prepare(self, cuts: Sequence[Frames]) -> Tensor:
        pixels, augment = torch.from_numpy(np.stack(cuts)), self.trained.augment
        frames = paint(pixels[None], color_map(view_record(augment, len(pixels)))[None], augment)[0]
        return frames.to(self._classes.device)

    def entities(self, seen: FrameFeatures) -> list[EntityShare]:
        """Return what the regions of a picture aligned to, by falling share. seen: of one picture, [1, ...]."""
        return entity_shares(self.trained.model.corpus, seen.entity[0].tolist())

    def token_entities(self, seen: FrameFeatures) -> list[str]:
        """Return the entity of each of a picture's tokens; none where nothing aligns. seen: [1, ...]."""
        corpus = self.trained.model.corpus
        return [] if corpus is None else [corpus.names[i] for i in seen.entity[0].tolist()]

    def crop(self, picture: Frames) -> Frames:
        """Return the part of a picture that is seen, uint8 RGB [h, w, 3], with the pixels that it has there."""
        top, left, height, width = crop_box(self._record, *picture.shape[:2])
        return picture[top : top + height, left : left + width]

    @torch.inference_mode()
    def judge(self, window: FrameFeatures) -> list[tuple[str, float]]:
        """Return the labels with their probabilities, likeliest first. window: of T pictures in the order of time."""
        return rank(self.labels, self._score(*as_clip(window))[0])


def join(seen: Sequence[FrameFeatures]) -> FrameFeatures:
    """Return features one behind the other."""
    return FrameFeatures(*(torch.cat(parts) for parts in zip(*seen, strict=True)))


def as_clip(window: FrameFeatures) -> FrameFeatures:
    """Return features of T pictures as those of one clip, [1, T, ...]."""
    return FrameFeatures(*(part[None] for part in window))


@dataclass(frozen=True)
class Judgement:
    """What is said of the last T pictures.

    labels: with probabilities, likeliest first. picture, seen: the newest picture, and its features [1, ...]. time:
    when it came, in seconds since the first one. tick: when one was to be looked at, in seconds since looking began.
    """

    labels: list[tuple[str, float]]
    picture: Picture
    seen: FrameFeatures
    time: float
    tick: float


class Watch:
    """Iterates over what is said of a source, tick by tick, until it ends or is to; None where nothing can be said.

    A clip's T frames are `window` seconds / T apart: at every such tick the newest picture is seen, and the last T are
    judged. A tick without a new picture repeats the one before. Ticks that pass while one is worked on are passed over
    and not made up for, so that a slow machine judges every second one, or third; they count as repeats too. When
    nothing has come for a whole window, it is emptied, and filled again before anything is said.

    Nor is anything said where all T pictures are of one colour.

    window: by default four seconds, or as long as T pictures take; the one taken is known once there is a picture.
    judged, passed_over: ticks. blank: whether the last T pictures were of one colour.

    Raises ArgumentError for a window in which the source has fewer pictures than a clip has frames; VideoError.
    """

    def __init__(
        self, recogniser: Recogniser, capture: Capture, window: float | None, clock: Clock, ending: threading.Event
    ) -> None:
        self.judged = self.passed_over = 0
        self._recogniser, self._capture, self._clock, self._ending = recogniser, capture, clock, ending
        self.window, self.blank = window, False

    def __iter__(self) -> Iterator[Judgement | None]:
        first = self._wait_for_first()
        if first is None:
            return
        window = self.window = self._check_window()
        count = self._recogniser.clip_frames
        spacing, start = window / count, self._clock.now()
        clip: deque[tuple[FrameFeatures, bool]] = deque(maxlen=count)  # and whether they show nothing
        tick, number = 0, -1
        while not self._ending.is_set():
            last = self._capture.ended.is_set()  # asked before, so that the very last picture is judged
            picture = self._capture.newest() or first
            if picture.number != number:
                cut, number = self._recogniser.cut(picture.planes()), picture.number
                seen, nothing = self._recogniser.see([cut]), bool(is_blank(torch.from_numpy(cut)))
            clip.append((seen, nothing))
            if self._clock.now() - picture.time > window:
                clip.clear()
            self.blank = len(clip) == count and all(nothing for _, nothing in clip)
            if len(clip) == count and not self.blank:
                self.judged += 1
                labels = self._recogniser.judge(join([seen for seen, _ in clip]))
                yield Judgement(labels, picture, seen, picture.time - first.time, tick * spacing)
            else:
                yield None
            if last:
                return
            missed = max(0, math.ceil((self._clock.now() - start) / spacing) - tick - 1)
            self.passed_over += missed
            if clip:
                clip.extend([(seen, nothing)] * min(missed, count))
            tick += 1 + missed
            self._clock.wait(self._ending, start + tick * spacing - self._clock.now())

    def _wait_for_first(self) -> Picture | None:
        while not self._ending.is_set():
            last = self._capture.ended.is_set()  # asked before: `newest` raises what ended it
            picture = self._capture.newest()
            if picture is not None or last:
                return picture
            self._clock.wait(self._ending, _LOOK)
        return None

    def _check_window(self) -> float:
        count, rate = self._recogniser.clip_frames, self._capture.rate
        least = count / rate if rate else 0.0
        window = max(WINDOW, least) if self.window is None else self.window
        if window < least:
            raise ArgumentError(
                f"the window must hold the {count} frames of a clip: at {rate:g} pictures/s it must be "
                f">= {least:.3g} s, got {window:g} s"
            )
        return window
