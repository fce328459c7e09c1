"""What happens when in a long video: windows against clips, what is shared, what is told of what cannot be read."""

import math
import tracemalloc
import weakref
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import alt_fast
from alt_fast.data.augment import apply, color_map, paint, view_record
from alt_fast.data.config import Loading
from alt_fast.data.decode import Frames, VideoError, VideoIndex, decode_frames, index_video
from alt_fast.errors import ArgumentError
from alt_fast.inference import windows
from alt_fast.inference.segments import Hysteresis, Segmenter
from alt_fast.inference.windows import ChunkReader, Judge, find_segments, place_windows, read_frames
from alt_fast.model.alt import ALT, FrameFeatures
from alt_fast.report.timeline import Segment, Timeline
from tests.conftest import NoiseWriter, VideoWriter

LABELS = ["a star growing", "a moon growing", "surfing"]
HERE = Loading(workers=0)
ALL = Hysteresis(enter=0.01, leave=0.01)


@pytest.fixture(scope="module")
def model(trained_run: Path) -> alt_fast.TrainedModel:
    return alt_fast.load(trained_run)


@pytest.fixture
def long(write_noise: NoiseWriter) -> Path:
    return write_noise("long.mkv", "libx264", frames=60)


def clip_scores(model: alt_fast.TrainedModel, path: Path, numbers: list[int]) -> dict[str, float]:
    """Of a clip of these frames, as any test clip is scored."""
    spec = model.spec
    frames = decode_frames(path, index_video(path), numbers)
    clip = apply(view_record(spec.augment, spec.num_frames), frames, spec.size, spec.augment)[None]
    scores = model.model.probabilities(clip, model.embed(LABELS))[0][0]
    return dict(zip(LABELS, scores.tolist(), strict=True))


def told(timeline: Timeline, step: int) -> dict[str, float]:
    """The labels of a step."""
    pairs = zip(timeline.top[step], timeline.probability[step], strict=True)
    return {timeline.labels[label]: float(probability) for label, probability in pairs}


def test_a_window_of_the_whole_video_is_its_clip(model: alt_fast.TrainedModel, long: Path) -> None:
    for window in (6.0, 100.0):
        found = model.find_segments(long, LABELS, window=window, loading=HERE)
        assert (found.windows, found.duration) == (1, 6.0)
        assert told(found, 0) == pytest.approx(dict(model.classify(long, LABELS)), abs=1e-5)
        assert found.entities[0][0] in {
            share.entity for frame in model.classify(long, LABELS).frames for share in frame
        }


def test_every_window_is_scored_as_the_clip_of_its_frames(model: alt_fast.TrainedModel, long: Path) -> None:
    found = model.find_segments(long, LABELS, every=1, window=2, loading=HERE)
    for step in range(5):  # 10 frames a second, two frames a window: half a second after its start, and before its end
        numbers = [10 * step + 5, 10 * step + 15]
        assert told(found, step) == pytest.approx(clip_scores(model, long, numbers), abs=1e-5)
    assert found.times.tolist() == [0.0, 1.5, 2.5, 3.5, 4.5]
    assert found.windows == 5


def test_frames_are_encoded_once_for_all_windows_they_are_in(
    model: alt_fast.TrainedModel, long: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, see = [], ALT.see

    def count(self: ALT, frames: Tensor, head: Any) -> FrameFeatures:
        seen.append(len(frames))
        return see(self, frames, head)

    monkeypatch.setattr(ALT, "see", count)
    found = model.find_segments(long, LABELS, every=1, window=2, loading=HERE)
    assert sum(seen) == found.encoded == 6  # of 10 places in 5 windows
    assert model.find_segments(long, LABELS, every=0.7, window=2, loading=HERE).encoded == 14  # none coincide


def test_memory_does_not_grow_with_length(
    model: alt_fast.TrainedModel, write_noise: NoiseWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decoded, and what is kept of frames that were encoded: both of a window and a part at most."""
    encoded: list[weakref.ref[Tensor]] = []
    most, see = 0, Judge.see

    def count(self: Judge, pixels: NDArray[np.uint8]) -> list[FrameFeatures] | list[Tensor]:
        nonlocal most
        found = see(self, pixels)
        encoded.extend(weakref.ref(frame[0]) for frame in found)
        most = max(most, sum(frame() is not None for frame in encoded))
        return found

    monkeypatch.setattr(Judge, "see", count)
    paths = [write_noise(f"{frames}.mkv", "libx264", frames=frames) for frames in (80, 80, 320)]
    peaks = []
    for path in paths:  # the first one's has what is made once
        most = 0
        tracemalloc.start()
        model.find_segments(path, LABELS, every=0.1, window=1, loading=HERE)
        peaks.append((tracemalloc.get_traced_memory()[1], most))
        tracemalloc.stop()
    short, long = peaks[1:]
    assert long[1] == short[1] <= 2 * windows.CHUNK + 10
    pictures = windows.PICTURES * 2**11  # of a page, at most so many; these are of 48 x 48 pixels
    assert long[0] < 1.2 * short[0] + pictures


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_and_the_size_of_their_parts_change_nothing(
    model: alt_fast.TrainedModel, long: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = model.find_segments(long, LABELS, 0.1, 1, loading=HERE)
    monkeypatch.setattr(windows, "CHUNK", 5)
    shared = model.find_segments(long, LABELS, 0.1, 1, loading=Loading(workers=workers))
    assert np.array_equal(alone.times, shared.times)
    assert np.array_equal(alone.top, shared.top)
    np.testing.assert_allclose(alone.probability, shared.probability, atol=1e-5)
    assert [picture.time for picture in alone.pictures] == [picture.time for picture in shared.pictures]


def test_windows_lie_where_they_are_asked_for(long: Path) -> None:
    index = index_video(long)
    placed = place_windows(long, index, 4, window=2.0, every=0.5)
    assert placed.numbers[0].tolist() == [2, 7, 12, 17]  # 0.25 s and on, by half a second
    assert placed.numbers[-1].tolist() == [42, 47, 52, 57]
    assert placed.steps.tolist() == [0, *(1.25 + 0.5 * k for k in range(8)), 6.0]
    for every, starts in ((1.5, [0, 15, 30, 40]), (4.0, [0, 40]), (4.5, [0, 40]), (4.0001, [0, 40])):
        placed = place_windows(long, index, 4, window=2.0, every=every)
        assert (placed.numbers[:, 0] - 2).tolist() == starts  # the last window ends with the video
        halfway = [(a + b) / 20 + 1 for a, b in pairwise(starts)]
        assert placed.steps.tolist() == [0, *halfway, 6.0]
    with pytest.raises(ArgumentError, match=r"0.3 s of .*long.mkv have 3 frames, and the model takes 4"):
        place_windows(long, index, 4, window=0.3, every=1)
    for window, every in ((2.0, 1e-7), (2.0, math.inf), (math.inf, 1.0), (math.nan, 1.0)):
        with pytest.raises(ArgumentError, match="window and every must be finite, and every 1 ms at least"):
            place_windows(long, index, 4, window, every)


def test_times_are_the_frames_own_where_the_rate_varies() -> None:
    index = VideoIndex(4, [100, 110, 190, 200], [100], Fraction(1, 100), "h264", "yuv420p", 1, 8, 8, 10.0)
    assert [index.frame_at(Fraction(t, 100)) for t in (0, 9, 10, 89, 90, 99, 100, 5000)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [index.time_of(number) for number in range(4)] == [0, Fraction(1, 10), Fraction(9, 10), 1]
    assert index.duration == Fraction(4, 3)
    untimed = VideoIndex(4, None, [], Fraction(1, 10), "mpeg4", "yuv420p", 1, 8, 8, 10.0)
    assert [untimed.frame_at(Fraction(t, 100)) for t in (0, 9, 10, 39, 5000)] == [0, 0, 1, 3, 3]
    assert untimed.duration == Fraction(2, 5)


def test_a_video_that_does_not_tell_its_times_is_refused(tmp_path: Path) -> None:
    index = VideoIndex(4, None, [], None, "mpeg4", "yuv420p", 1, 8, 8, None)
    with pytest.raises(VideoError, match="neither its frames nor its header tell when they are shown"):
        place_windows(tmp_path / "raw.avi", index, 2, 1, 1)


class Damaged(ChunkReader):
    """A reader of a video some of whose frames cannot be decoded."""

    def __call__(self, numbers: Any) -> Frames:
        if 25 in numbers or 35 in numbers:
            raise VideoError(self.path, "damaged")
        return super().__call__(numbers)


def test_a_damaged_part_is_a_gap_and_costs_no_more(
    model: alt_fast.TrainedModel, long: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model.find_segments(long, LABELS, 1, 2, ALL, loading=HERE)
    reader = Damaged(str(long), index_video(long), model.spec)
    parts = list(read_frames(reader, [5, 15, 25, 35, 45, 55], Loading(workers=1)))
    assert [number for numbers, _ in parts for number in numbers] == [5, 15, 25, 35, 45, 55]
    assert [number for numbers, found in parts for number in numbers if isinstance(found, str)] == [25, 35]
    monkeypatch.setattr(windows, "ChunkReader", Damaged)
    found = model.find_segments(long, LABELS, 1, 2, ALL, loading=HERE)
    assert [(gap.start, gap.end, gap.cause) for gap in found.gaps] == [(1.5, 4.5, "damaged")]
    assert found.times.tolist() == [0.0, 4.5]
    np.testing.assert_allclose(found.probability, whole.probability[[0, 4]], atol=1e-5)
    assert {(segment.start, segment.end) for segment in found.segments} == {(0.0, 1.5), (4.5, 6.0)}
    assert {(segment.start, segment.end) for segment in whole.segments} == {(0.0, 6.0)}


def test_a_video_of_one_colour_is_refused(
    model: alt_fast.TrainedModel, tmp_path: Path, write_video: VideoWriter
) -> None:
    with pytest.raises(VideoError, match=r"black.mp4: nothing can be told: every frame is of one colour"):
        model.find_segments(write_video("black.mp4", frames=40), LABELS, 0.5, 1, loading=HERE)
    (tmp_path / "broken.mp4").write_text("no video")
    with pytest.raises(VideoError, match="broken.mp4"):
        model.find_segments(tmp_path / "broken.mp4", LABELS, 1, 2, loading=HERE)


def test_what_is_of_one_colour_is_not_encoded(
    model: alt_fast.TrainedModel, long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But beside frames that show something, of which the windows are scored as ever. A colour counts as black does."""

    class Late(ChunkReader):
        """A reader of a video that is blue up to the frame 25."""

        def __call__(self, numbers: Any) -> Frames:
            frames = super().__call__(numbers)
            frames[np.array(numbers) < 25] = np.array([0, 0, 200], np.uint8)[:, None, None]
            return frames

    monkeypatch.setattr(windows, "ChunkReader", Late)
    found = model.find_segments(long, LABELS, 1, 2, ALL, loading=HERE)
    assert [(gap.start, gap.end, gap.cause) for gap in found.gaps] == [(0.0, 1.5, "every frame is of one colour")]
    assert found.encoded == 5  # of 5, 15, 25, 35, 45, 55, all but the first
    assert found.times.tolist() == [1.5, 2.5, 3.5, 4.5]
    spec = model.spec
    pixels = Late(str(long), index_video(long), spec)([15, 25])
    clip = paint(torch.from_numpy(pixels)[None], color_map(view_record(spec.augment, 2))[None], spec.augment)
    scores = model.model.probabilities(clip, model.embed(LABELS))[0][0]
    assert told(found, 0) == pytest.approx(dict(zip(LABELS, scores.tolist(), strict=True)), abs=1e-5)


def test_frames_that_look_at_each_other_are_encoded_by_window(
    long: Path, trained_run: Path, corpus: alt_fast.Corpus
) -> None:
    torch.manual_seed(0)
    model = alt_fast.create_model("alt_tiny", corpus, frames=2, tuning="stm").eval()
    spec = alt_fast.load(trained_run).spec
    classes = model.text.classes(LABELS)
    found = find_segments(long, Judge(model, spec, classes, "alt"), LABELS, 2, 1, Hysteresis(), HERE)
    assert found.encoded == 10
    frames = decode_frames(long, index_video(long), [15, 25])
    clip = apply(view_record(spec.augment, 2), frames, spec.size, spec.augment)[None]
    expected = model.probabilities(clip, classes)[0][0]
    assert told(found, 1) == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-5)


def test_a_label_goes_on_while_it_is_likely() -> None:
    def segments(rule: Hysteresis, *scores: float) -> list[Segment]:
        segmenter = Segmenter(["a", "b"], rule)
        for step, score in enumerate(scores):
            segmenter.step(float(step), np.array([score, 1 - score], np.float32))
        segmenter.stop(float(len(scores)))
        return [segment for segment in segmenter.segments if segment.label == "a"]

    rule = Hysteresis(0.6, 0.4)
    (only,) = segments(rule, 0.5, 0.6, 0.5, 0.4, 0.7, 0.39, 0.5)
    assert (only.start, only.end) == (1.0, 5.0)
    assert [only.score, only.peak] == pytest.approx([0.55, 0.7])
    assert [(s.start, s.end) for s in segments(Hysteresis(0.6, 0.4, min_length=2), 0.7, 0, 0.7, 0.7, 0, 0.7)] == [
        (2, 4)
    ]
    assert segments(rule, 0.59) == []
    tenths = Segmenter(["a"], Hysteresis(0.6, 0.4, min_length=0.3))
    for step in range(12):  # from 0.55 to 0.85, which is 0.29999999999999993, and from 0.95 on
        tenths.step(0.05 + step / 10, np.array([0.7 if 5 <= step < 8 or step == 9 else 0.0], np.float32))
    assert [round(segment.start, 9) for segment in tenths.segments] == [0.55]
    for wrong in ({"enter": 0.3, "leave": 0.4}, {"leave": 0.0}, {"enter": 1.1}, {"min_length": -1.0}):
        with pytest.raises(ArgumentError):
            Hysteresis(**wrong)


def test_what_cannot_be_asked(model: alt_fast.TrainedModel, long: Path) -> None:
    with pytest.raises(ArgumentError, match="every must be > 0 seconds, got 0"):
        model.find_segments(long, LABELS, every=0)
    with pytest.raises(ArgumentError, match="labels must not be empty"):
        model.find_segments(long, [])
    with pytest.raises(ArgumentError, match="labels must say something, got ' '"):
        model.find_segments(long, ["surfing", " "])
    with pytest.raises(ArgumentError, match="labels must differ, got 'surfing' twice"):
        model.find_segments(long, ["surfing", "eating", "surfing"])
