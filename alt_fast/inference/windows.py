"""What happens when in a long video: windows that overlap, whose frames are decoded and encoded once."""

import io
import math
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from alt_fast.data.augment import color_map, cut_picture, is_blank, paint, view_record
from alt_fast.data.config import ClipSpec, Loading
from alt_fast.data.decode import FrameReader, VideoError, VideoIndex, index_video
from alt_fast.data.workers import LostError, Workers
from alt_fast.errors import ArgumentError
from alt_fast.inference.predict import ONE_COLOUR, check_finite, entity_shares
from alt_fast.inference.segments import Hysteresis, Segmenter
from alt_fast.model.alt import ALT, FrameFeatures
from alt_fast.model.config import Head
from alt_fast.progress import Progress
from alt_fast.report.timeline import Gap, Picture, Timeline

CHUNK = 32  # frames that one call decodes
TOP = 5  # labels kept of every window
ENTITIES = 4  # likewise
PICTURES = 240  # at most, of a page
PICTURE_SIDE = 112  # pixels, at most


@dataclass(frozen=True)
class Windows:
    """Which frames make which window: those in the middle of its T equal parts, as a clip takes its video's.

    numbers: [K, T] frames, ascending. steps: [K + 1] seconds, when what a window's score tells of begins, and where the
    last one ends: half way between the windows' middles.
    """

    numbers: NDArray[np.int64]
    steps: NDArray[np.float64]


def place_windows(path: str | Path, index: VideoIndex, num_frames: int, window: float, every: float) -> Windows:
    """Lay windows of `window` seconds over a video, one every `every` seconds; a shorter video is one window.

    The last one ends with the video, so that it may begin sooner than `every` seconds after the one before.

    Raises ArgumentError for a window of fewer frames than a clip has, and for more than one a millisecond; VideoError
    where nothing tells when a video's frames are shown.
    """
    if index.tick is None:
        raise VideoError(path, "neither its frames nor its header tell when they are shown")
    length = index.duration
    if not (math.isfinite(window) and 1e-3 <= every < math.inf):
        raise ArgumentError(f"window and every must be finite, and every 1 ms at least, got {window} and {every} s")
    span, step = (Fraction(seconds).limit_denominator(10**6) for seconds in (window, every))
    if length and span * index.count < num_frames * length:
        raise ArgumentError(
            f"{window:g} s of {path} have {float(span * index.count / length):.3g} frames, and the model takes "
            f"{num_frames}: ask for a longer window"
        )
    span = min(span, length)
    last = length - span
    starts = [*(number * step for number in range(math.ceil(last / step))), last]
    offsets = [(place + Fraction(1, 2)) * span / num_frames for place in range(num_frames)]
    numbers = [[index.frame_at(start + offset) for offset in offsets] for start in starts]
    middles = [float((start + following + span) / 2) for start, following in pairwise(starts)]
    return Windows(np.array(numbers), np.array([0.0, *middles, float(length)]))


class ChunkReader:
    """Decodes frames of one video, in order, and cuts them as test clips are cut: uint8 [n, 3, H, W].

    Picklable before its first call.
    """

    def __init__(self, path: str, index: VideoIndex, spec: ClipSpec) -> None:
        self.path = path
        take = partial(cut_picture, view_record(spec.augment, spec.num_frames), spec.size)
        self._frames = FrameReader(path, index, take)

    def __call__(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        return self._frames(numbers)


def read_frames(
    reader: ChunkReader, numbers: Sequence[int], loading: Loading
) -> Generator[tuple[list[int], NDArray[np.uint8] | str], None, None]:
    """Yield frames in order, some at a time: their numbers, and uint8 [n, 3, H, W] or why they cannot be read.

    Where several cannot be decoded together, each half is tried again: one damaged frame costs no other.
    """
    parts = [list(numbers[start : start + CHUNK]) for start in range(0, len(numbers), CHUNK)]
    with Workers(reader, loading.workers, loading.timeout) as pool:
        waiting = deque(parts[2 * loading.workers + 1 :])
        started = deque((part, pool.submit(part)) for part in parts[: 2 * loading.workers + 1])
        while started:
            part, future = started.popleft()
            try:
                yield part, future.result()
            except VideoError as e:
                if len(part) == 1:
                    yield part, e.cause
                else:
                    halves = part[: len(part) // 2], part[len(part) // 2 :]
                    started.extendleft((half, pool.submit(half)) for half in reversed(halves))
                    continue
            except LostError as e:
                yield part, str(e)
            if waiting:
                started.append((waiting[0], pool.submit(waiting.popleft())))


class Judge:
    """Scores windows by a model. classes: embeddings [I, d] of the labels.

    What it keeps of a frame are its features, so that it is encoded once, however many windows show it; or its pixels,
    for a model whose frames look at each other (adapters over time).
    """

    def __init__(self, model: ALT, spec: ClipSpec, classes: Tensor, head: Head) -> None:
        self.model, self.spec, self.classes, self.head = model.eval(), spec, classes, head
        self.apart = model.config.tuning != "stm"

    def see(self, pixels: NDArray[np.uint8]) -> list[FrameFeatures] | list[Tensor]:
        """Return what is kept of frames, uint8 [n, 3, H, W]."""
        maps = color_map(view_record(self.spec.augment, len(pixels)))
        frames = paint(torch.from_numpy(pixels)[None], maps[None], self.spec.augment)[0].to(self.classes.device)
        if not self.apart:
            return list(frames)
        return [FrameFeatures(*parts) for parts in zip(*self.model.see(frames, self.head), strict=True)]

    def score(self, windows: Sequence[Sequence[Any]]) -> tuple[Tensor, Tensor]:
        """Return how likely each label is, [B, I] fp32, and the entities [B, T, n] of B windows of T frames each."""
        if not self.apart:
            clips = torch.stack([torch.stack(list(window)) for window in windows])
            return self.model.probabilities(clips, self.classes, self.head)
        frames = [frame for window in windows for frame in window]
        shape = (len(windows), -1)
        seen = FrameFeatures(*(torch.stack(parts).unflatten(0, shape) for parts in zip(*frames, strict=True)))
        return self.model.score(seen, self.classes, self.head), seen.entity


@torch.inference_mode()
def find_segments(
    path: str | Path,
    judge: Judge,
    labels: Sequence[str],
    window: float,
    every: float,
    rule: Hysteresis,
    loading: Loading,
) -> Timeline:
    """Say what happens when in a video. Memory holds a window's frames and what is being decoded, whatever its length.

    window, every: seconds that one score is of, and from one to the next. Raises VideoError for a video that cannot be
    used or shows nothing, ArgumentError as `place_windows` does.
    """
    index = index_video(path)
    windows = place_windows(path, index, judge.spec.num_frames, window, every)
    reader = ChunkReader(str(path), index, judge.spec)
    wanted = np.unique(windows.numbers).tolist()
    scan = _Scan(index, windows, judge, Segmenter(labels, rule))
    with closing(read_frames(reader, wanted, loading)) as parts:
        for numbers, found in Progress(parts, Path(path).name, "part", total=math.ceil(len(wanted) / CHUNK)):
            scan.take(numbers, found)
    scan.segmenter.stop(float(windows.steps[-1]))
    if not scan.judged:
        raise VideoError(path, f"nothing can be told: {scan.gaps[0].cause}")
    times, top, probability = (np.concatenate(parts) for parts in zip(*scan.judged, strict=True))
    return Timeline(
        video=Path(path).name,
        duration=float(windows.steps[-1]),
        every=every,
        window=window,
        windows=len(windows.numbers),
        encoded=scan.encoded if judge.apart else windows.numbers.size,
        labels=labels,
        segments=sorted(scan.segmenter.segments, key=lambda segment: (segment.start, segment.end)),
        gaps=scan.gaps,
        times=times,
        top=top,
        probability=probability,
        entities=scan.entities,
        pictures=scan.pictures,
    )


class _Scan:
    """A video on the way: frames come in order, and every window is judged once its last one is there."""

    def __init__(self, index: VideoIndex, windows: Windows, judge: Judge, segmenter: Segmenter) -> None:
        self.index, self.windows, self.judge, self.segmenter = index, windows, judge, segmenter
        self.judged: list[tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.float32]]] = []
        self.entities: list[list[str]] = []
        self.gaps: list[Gap] = []
        self.pictures: list[Picture] = []
        self.encoded = 0
        # By frame: what the judge keeps; why there is nothing to; pixels of one colour that no window has needed yet.
        self._kept: dict[int, Any] = {}
        self._shows: set[int] = set()  # frames that are more than one colour
        self._next = 0  # window
        every = math.ceil(len(windows.numbers) / PICTURES)
        self._pictured = set(windows.numbers[::every, windows.numbers.shape[1] // 2].tolist())

    def take(self, numbers: Sequence[int], found: NDArray[np.uint8] | str) -> None:
        """Take frames, uint8 [n, 3, H, W], or why they cannot be read, and judge what windows they complete."""
        if isinstance(found, str):
            self._kept |= dict.fromkeys(numbers, found)
        else:
            shown = (~is_blank(torch.from_numpy(found))).tolist()
            self._shows |= {number for number, shows in zip(numbers, shown, strict=True) if shows}
            self._kept |= dict(zip(numbers, found, strict=True))
            self._see(sorted(self._shows.intersection(numbers)))
            for number, pixels in zip(numbers, found, strict=True):
                if number in self._pictured:
                    self.pictures.append(Picture(float(self.index.time_of(number)), _jpeg(pixels)))
        last = self.windows.numbers[:, -1]
        ready = range(self._next, int(np.searchsorted(last, numbers[-1], "right")))
        if ready:
            self._judge(ready)
            self._next = ready.stop
        if self._next < len(last):
            first = self.windows.numbers[self._next, 0]
            self._kept = {number: kept for number, kept in self._kept.items() if number >= first}
            self._shows = {number for number in self._shows if number >= first}

    def _see(self, numbers: Sequence[int]) -> None:
        """Encode these frames, whose pixels are kept."""
        if numbers:
            pixels = np.stack([self._kept[number] for number in numbers])
            self._kept |= dict(zip(numbers, self.judge.see(pixels), strict=True))
            self.encoded += len(numbers)

    def _judge(self, ready: range) -> None:
        """Judge these windows."""
        causes = [self._cause(numbers) for numbers in self.windows.numbers[ready.start : ready.stop].tolist()]
        good = [k for k, cause in zip(ready, causes, strict=True) if cause is None]
        scores: dict[int, NDArray[np.float32]] = {}
        if good:
            needed = np.unique(self.windows.numbers[good]).tolist()
            self._see([number for number in needed if isinstance(self._kept[number], np.ndarray)])  # shows nothing
            kept = [[self._kept[number] for number in self.windows.numbers[k].tolist()] for k in good]
            probabilities, entity = self.judge.score(kept)
            check_finite(probabilities)
            top = probabilities.topk(min(TOP, probabilities.shape[1]))
            self.judged.append((self.windows.steps[good], top.indices.int().cpu().numpy(), top.values.cpu().numpy()))
            self.entities += [self._names(window) for window in entity.flatten(1).tolist()]
            scores = dict(zip(good, probabilities.cpu().numpy(), strict=True))
        for k, cause in zip(ready, causes, strict=True):
            start, end = self.windows.steps[k : k + 2].tolist()
            if cause is None:
                self.segmenter.step(start, scores[k])
                continue
            self.segmenter.stop(start)
            if self.gaps and self.gaps[-1].end == start and self.gaps[-1].cause == cause:
                start = self.gaps.pop().start
            self.gaps.append(Gap(start, end, cause))

    def _cause(self, numbers: Sequence[int]) -> str | None:
        """Why a window of these frames cannot be judged."""
        broken = next((self._kept[number] for number in numbers if isinstance(self._kept[number], str)), None)
        if broken is None and not self._shows.intersection(numbers):
            return ONE_COLOUR
        return broken

    def _names(self, entity: Sequence[int]) -> list[str]:
        """The entities that most tokens of a window aligned to."""
        return [share.entity for share in entity_shares(self.judge.model.corpus, entity)[:ENTITIES]]


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """A small picture of a frame, uint8 [3, H, W]."""
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()
