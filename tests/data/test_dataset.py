"""Order, choices and replacements depend on nothing but the seed."""

from itertools import islice
from pathlib import Path

import pytest

from alt_fast.data.annotations import Video
from alt_fast.data.config import AugmentConfig, ClipSpec
from alt_fast.data.dataset import NO_LABEL, EpochSampler, EvalClips, TrainClips, batched

SPEC = ClipSpec(4, (32, 32), AugmentConfig())
VIDEOS = [Video(Path(f"{i}.mp4"), i % 3) for i in range(23)]


def test_every_epoch_visits_every_video_once() -> None:
    batches = list(EpochSampler(23, 5, 0, range(8)))
    for epoch in range(2):
        keys = [key for batch in batches[epoch * 4 : epoch * 4 + 4] for key in batch]
        assert len(set(keys)) == 20
        assert {e for e, _ in keys} == {epoch}
    assert batches[:4] != [[(0, i) for _, i in batch] for batch in batches[4:]]


def test_any_step_can_be_the_first() -> None:
    everything = list(EpochSampler(23, 5, 3, range(12)))
    for start in range(12):
        assert list(EpochSampler(23, 5, 3, range(start, 12))) == everything[start:]
    assert len(EpochSampler(23, 5, 3, range(7, 12))) == 5


def test_parts_of_a_batch_make_up_the_batch() -> None:
    whole = list(EpochSampler(31, 8, 3, range(1, 9)))
    parts = list(EpochSampler(31, 8, 3, range(1, 9), parts=4))
    assert [len(part) for part in parts] == [2] * 32 == [2] * len(EpochSampler(31, 8, 3, range(1, 9), parts=4))
    assert [[key for part in parts[i : i + 4] for key in part] for i in range(0, 32, 4)] == whole


@pytest.mark.parametrize("parts", [1, 2])
def test_processes_share_every_part_of_a_batch(parts: int) -> None:
    one = list(EpochSampler(31, 12, 3, range(5), parts))
    shares = [list(EpochSampler(31, 12, 3, range(5), parts, rank, 3)) for rank in range(3)]
    assert [[key for share in part for key in share] for part in zip(*shares, strict=True)] == one
    with pytest.raises(ValueError, match="batch size 12 does not divide by 2 parts of 5 processes"):
        EpochSampler(31, 12, 3, range(5), 2, 0, 5)


def test_records_differ_from_epoch_to_epoch_and_repeat() -> None:
    clips = TrainClips(VIDEOS, SPEC, seed=5)
    assert clips.record((0, 3)) == clips.record((0, 3)) == TrainClips(VIDEOS, SPEC, seed=5).record((0, 3))
    assert len({clips.record(key) for key in [(0, 3), (1, 3), (0, 4)]}) == 3


def test_replacements_are_drawn_from_the_seed() -> None:
    clips = TrainClips(VIDEOS, SPEC, seed=0)
    drawn = list(clips.candidates((4, 7)))
    assert drawn[0] == 7
    assert len(drawn) == 50
    assert len(set(drawn)) > 10
    assert drawn == list(clips.candidates((4, 7)))
    assert drawn[1:] != list(clips.candidates((5, 7)))[1:]
    assert clips.label_without_video((4, 7)) == NO_LABEL


def test_every_view_of_every_video_once() -> None:
    clips = EvalClips(VIDEOS[:2], SPEC, crops=3, clips=2)
    assert clips.keys() == [(index, view) for index in range(2) for view in range(6)]
    views = [clips.record(key) for key in islice(clips.keys(), 6)]
    assert [view.crop[2] for view in views] == [0.0, 0.5, 1.0] * 2
    assert [view.positions[0] for view in views] == [0.25 / 4] * 3 + [0.75 / 4] * 3
    assert list(clips.candidates((1, 5))) == [1]
    assert clips.label_without_video((1, 5)) == 1
    assert EvalClips(VIDEOS, SPEC).record((0, 0)).positions == (0.125, 0.375, 0.625, 0.875)


def test_batches_of_keys_drop_nothing() -> None:
    assert list(batched([(0, 0), (1, 0), (2, 0)], 2)) == [[(0, 0), (1, 0)], [(2, 0)]]
