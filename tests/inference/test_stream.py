"""Pictures that come one by one are judged as clips of them are, in time, and at the cost of one."""

import ctypes
import gc
import os
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alt_fast import load
from alt_fast.corpus import Corpus
from alt_fast.data.augment import apply, view_record
from alt_fast.data.capture import Capture, WallClock
from alt_fast.data.decode import Frames, VideoError, decode_clip
from alt_fast.errors import ArgumentError
from alt_fast.inference.stream import Judgement, Recogniser, Watch, join
from alt_fast.inference.trained import TrainedModel
from alt_fast.model.alt import ALT, FrameFeatures, create_model
from alt_fast.model.config import Head
from benchmarks.audit import fvcore_count
from benchmarks.clock import SharedClock
from tests.conftest import NoiseWriter
from tests.streams import mpegts

LABELS = ["a star growing", "a moon growing", "surfing"]
HEADS: tuple[Head, ...] = ("alt", "clip", "both")


@pytest.fixture(scope="module")
def trained(trained_run: Path) -> TrainedModel:
    return load(trained_run)


@pytest.fixture(scope="module")
def recogniser(trained: TrainedModel) -> Recogniser:
    return Recogniser(trained, LABELS)


class Tick(NamedTuple):
    """What was said at a tick, and of whom."""

    judgement: Judgement | None
    watch: Watch
    capture: Capture
    clock: SharedClock


def watched(recogniser: Recogniser, source: str, window: float | None) -> Iterator[Tick]:
    """Every tick of a file, in no time."""
    clock = SharedClock()
    with Capture(source, clock=clock) as capture:
        watch = Watch(recogniser, capture, window, clock, threading.Event())
        for judgement in watch:
            yield Tick(judgement, watch, capture, clock)


@pytest.mark.parametrize("head", HEADS)
def test_a_clip_s_frames_one_by_one_are_judged_as_the_clip(
    trained: TrainedModel, trained_run: Path, head: Head
) -> None:
    recogniser = Recogniser(trained, LABELS, head)
    record = view_record(trained.augment, recogniser.clip_frames)
    for video in sorted((trained_run.parent / "data" / "test").glob("*.webm"))[:4]:
        frames = decode_clip(video, record.positions)
        cuts = [recogniser.cut(frame.transpose(2, 0, 1)) for frame in frames]
        judged = recogniser.judge(join([recogniser.see([cut]) for cut in cuts]))
        found = trained.classify(video, LABELS, None, head)
        assert dict(judged) == pytest.approx(dict(found), rel=1e-4)
        together = recogniser.judge(recogniser.see(cuts))
        assert dict(together) == pytest.approx(dict(found), rel=1e-4)
        assert [label for label, _ in judged] == [label for label, _ in found]


def test_what_is_said_of_a_picture_s_entities(trained: TrainedModel, trained_run: Path, recogniser: Recogniser) -> None:
    video = sorted((trained_run.parent / "data" / "test").glob("*.webm"))[0]
    frames = decode_clip(video, view_record(trained.augment, 2).positions)
    seen = recogniser.see([recogniser.cut(frames[1].transpose(2, 0, 1))])
    assert recogniser.entities(seen) == trained.classify(video).frames[1]
    names = recogniser.token_entities(seen)
    assert len(names) == 1 + 36 - 4 * 4
    assert int(seen.source.max()) == len(names) - 1
    assert {share.entity for share in recogniser.entities(seen)} == set(names)
    bare = Recogniser(trained, LABELS, "clip")
    seen = bare.see([bare.cut(frames[1].transpose(2, 0, 1))])
    assert bare.entities(seen) == []
    assert bare.token_entities(seen) == []


def test_what_is_seen_is_the_middle_of_a_picture(recogniser: Recogniser) -> None:
    picture = np.arange(60 * 100 * 3, dtype=np.uint8).reshape(60, 100, 3)
    side = round(recogniser.trained.augment.test_crop * 60)
    top, left = round((60 - side) / 2), round((100 - side) / 2)
    assert np.array_equal(recogniser.crop(picture), picture[top : top + side, left : left + side])


def test_every_tick_judges_the_pictures_that_were_the_newest(
    trained: TrainedModel, recogniser: Recogniser, write_noise: NoiseWriter
) -> None:
    path = write_noise("a.mp4", "libx264", frames=40)
    everything = decode_clip(path, [(i + 0.5) / 40 for i in range(40)])
    judged = [tick.judgement for tick in watched(recogniser, str(path), window=0.66)]
    assert judged[0] is None  # a clip has two frames
    made = [judgement for judgement in judged if judgement is not None]
    assert len(made) == 12
    assert made[-1].picture.number == 39
    record = view_record(trained.augment, 2)
    classes = trained.embed(LABELS)
    for before, judgement in pairwise(made):
        numbers = [before.picture.number, judgement.picture.number]
        assert judgement.time == pytest.approx(judgement.picture.number / 10)
        assert numbers[1] - numbers[0] in ((3, 4) if judgement is not made[-1] else (1, 2, 3, 4))
        clip = apply(record, everything[numbers], trained.spec.size, trained.augment)[None]
        with torch.inference_mode():
            expected = trained.model.probabilities(clip, classes)[0][0].tolist()
        assert dict(judgement.labels) == pytest.approx(dict(zip(LABELS, expected, strict=True)), rel=1e-4)


class Slow(Recogniser):
    """Takes 1.5 ticks of 0.33 s for every picture."""

    clock: SharedClock | None = None

    def see(self, cuts: Sequence[Frames]) -> FrameFeatures:
        if self.clock is not None:
            self.clock.wait(threading.Event(), 0.5)
        return super().see(cuts)


def test_a_slow_machine_passes_ticks_over_evenly(trained: TrainedModel, write_noise: NoiseWriter) -> None:
    slow = Slow(trained, LABELS)
    path = write_noise("a.mp4", "libx264", frames=60)
    clock = slow.clock = SharedClock()
    with Capture(str(path), clock=clock) as capture:
        watch = Watch(slow, capture, 0.66, clock, threading.Event())
        made = [judgement for judgement in watch if judgement is not None]
        seen = {0} | {judgement.picture.number for judgement in made}
        assert capture.passed_over == 60 - len(seen)
    gaps = np.diff([judgement.time for judgement in made])
    assert gaps[:-1] == pytest.approx(0.66, abs=0.1)
    assert watch.judged == len(made)
    assert watch.passed_over in (watch.judged - 1, watch.judged)
    assert clock.now() < 7  # six seconds of video: nothing was queued


def test_a_silent_source_is_not_judged(recogniser: Recogniser, tmp_path: Path) -> None:
    """For less than a window its last picture stands in; after that nothing is said until a new clip is full."""
    path = tmp_path / "gap.ts"
    path.write_bytes(mpegts(11) + mpegts(11, start=60))  # nothing from 1 to 6 s
    times = [(tick.clock.now(), tick.judgement is not None) for tick in watched(recogniser, str(path), window=0.66)]
    silent = [time for time, judged in times if not judged]
    assert silent[0] < 0.1
    assert silent[1] == pytest.approx(1.66, abs=0.34)
    assert silent[-1] == pytest.approx(6, abs=0.34)
    assert np.diff(silent[1:]) == pytest.approx(0.33)
    assert times[-1][1]


class Failing:
    """A source that fails between two questions about it."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def newest(self) -> None:
        if self.ended.is_set():
            raise VideoError("camera", "connection refused")
        self.ended.set()


def test_why_a_source_failed_is_said_whenever_it_fails(recogniser: Recogniser) -> None:
    capture: Any = Failing()
    with pytest.raises(VideoError, match="camera: connection refused"):
        list(Watch(recogniser, capture, None, WallClock(), threading.Event()))


def test_windows_that_hold_too_few_pictures(
    trained: TrainedModel, recogniser: Recogniser, write_noise: NoiseWriter
) -> None:
    path = str(write_noise("a.mp4", "libx264", frames=10))
    with pytest.raises(
        ArgumentError, match=r"window .* 2 frames of a clip: at 10 pictures/s it must be >= 0\.2 s, got 0\.1"
    ):
        list(watched(recogniser, path, window=0.1))
    assert len(list(watched(recogniser, path, window=0.2))) > 5


def test_what_cannot_be_recognised(trained: TrainedModel, corpus: Corpus) -> None:
    with pytest.raises(ArgumentError, match="labels must differ, got 'surfing' twice"):
        Recogniser(trained, ["surfing", "diving", "surfing"])
    with pytest.raises(ArgumentError, match="labels must not be empty"):
        Recogniser(trained, [])
    with pytest.raises(ArgumentError, match="this is CLIP alone"):
        Recogniser(replace(trained, head="clip"), LABELS, "alt")
    over_time = create_model("alt_tiny", corpus, frames=2, depth=1, tuning="stm")
    with pytest.raises(ArgumentError, match="adapters over time"):
        Recogniser(replace(trained, model=over_time), LABELS)


class Part(nn.Module):
    """A model, and classes to score by."""

    def __init__(self, model: ALT, classes: Tensor) -> None:
        super().__init__()
        self.model, self.classes = model, classes


class See(Part):
    """The half that sees."""

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.see(frames))


class Score(Part):
    """The half that scores."""

    def forward(self, *seen: Tensor) -> Tensor:
        return self.model.score(FrameFeatures(*seen), self.classes)


class Clip(Part):
    """Both at once."""

    def forward(self, video: Tensor) -> Tensor:
        return self.model.probabilities(video, self.classes)[0]


def test_a_tick_costs_one_frame_and_one_decoder(trained: TrainedModel) -> None:
    """To the MAC: T times what is seen, and what is judged, are a clip."""
    model, classes = trained.model, trained.embed(LABELS)
    count = trained.spec.num_frames
    video = torch.randn(1, count, 3, *trained.spec.size)
    see = sum(fvcore_count(See(model, classes), (video[0, :1],)).values())
    with torch.no_grad():
        seen = tuple(part[None] for part in model.see(video[0]))
    score = sum(fvcore_count(Score(model, classes), seen).values())
    assert count * see + score == sum(fvcore_count(Clip(model, classes), (video,)).values())
    assert score < see


MALLINFO2 = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]


class MallInfo2(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO2]


def malloced() -> int:
    """Bytes of malloc in use: FFmpeg's and torch's memory too, which tracemalloc does not see."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallInfo2
    info = mallinfo2()
    return info.uordblks + info.hblkhd


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or newer to measure malloc")
def test_an_hour_leaves_nothing_behind(recogniser: Recogniser, tmp_path: Path) -> None:
    """A picture a second, judged twice a minute."""
    path = tmp_path / "hour.ts"
    path.write_bytes(mpegts(3600, rate=1))
    held, native, kept, handles, threads = [], [], [], [], []
    gc.collect()
    gc.freeze()  # what earlier tests left, some of which ends meanwhile, is not among gc.get_objects()
    tracemalloc.start()
    try:
        for tick in watched(recogniser, str(path), window=60.0):
            if tick.watch.judged in (30, 118):
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
                native.append(malloced())
                kept.append([sum(isinstance(it, kind) for it in gc.get_objects()) for kind in (Tensor, av.VideoFrame)])
                handles.append(len(os.listdir("/proc/self/fd")))
                threads.append(set(threading.enumerate()))
    finally:
        tracemalloc.stop()
        gc.unfreeze()
        gc.collect()
        gc.freeze()  # as before, less what these tests left
    assert tick.clock.now() == pytest.approx(3600, abs=60)
    assert (tick.watch.passed_over, tick.capture.received) == (0, 3600)
    assert held[1] - held[0] < 50_000
    assert native[1] - native[0] < 1 << 20  # 2,640 pictures are 12 MB
    assert kept[0] == kept[1]  # their memory is not Python's
    assert handles[1] <= handles[0]  # an earlier test's may be closed meanwhile
    assert threads[1] <= threads[0]
