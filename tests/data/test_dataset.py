"""Order, choices and replacements depend on nothing but the seed."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from alt_fast.data.annotations import Video, read_classes, read_list
from alt_fast.data.augment import AugmentConfig
from alt_fast.data.dataset import NO_LABEL, ClipSpec, EpochSampler, EvalClips, TrainClips, eval_loader, train_loader

SPEC = ClipSpec(4, (32, 32), AugmentConfig())


@pytest.fixture
def videos(shapes: Path) -> list[Video]:
    return read_list(shapes / "train.txt", read_classes(shapes / "classes.csv"))[0]


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


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_in_any_process(videos: list[Video], workers: int) -> None:
    clips = TrainClips(videos, SPEC, seed=5)
    expected = [clips[key] for batch in EpochSampler(len(videos), 6, 5, range(10, 13)) for key in batch]
    got = list(train_loader(clips, 6, range(10, 13), 1, workers))
    assert torch.equal(torch.cat([batch.video for batch in got]), torch.stack([sample.video for sample in expected]))
    assert torch.cat([batch.label for batch in got]).tolist() == [sample.label for sample in expected]


def test_clips_differ_from_epoch_to_epoch(videos: list[Video]) -> None:
    clips = TrainClips(videos, SPEC, seed=5)
    assert torch.equal(clips[0, 3].video, clips[0, 3].video)
    assert not torch.equal(clips[0, 3].video, clips[1, 3].video)


def test_bad_videos_are_replaced_the_same_way_every_time(videos: list[Video], tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    mixed = [Video(tmp_path / "empty.mp4", 0), Video(tmp_path / "missing.mp4", 1), *videos[:4]]
    clips = TrainClips(mixed, SPEC, seed=0)
    samples = [clips[epoch, 0] for epoch in range(40)]
    assert all(sample.failures[0].path == str(tmp_path / "empty.mp4") for sample in samples)
    assert all("empty file" in sample.failures[0].cause for sample in samples)
    assert any(len(sample.failures) > 1 for sample in samples)  # a replacement may be bad as well
    assert len(Counter(sample.label for sample in samples)) > 1
    for epoch, sample in enumerate(samples):
        again = clips[epoch, 0]
        assert torch.equal(sample.video, again.video)
        assert sample.label == again.label
    hopeless = TrainClips([Video(tmp_path / "missing.mp4", 0)], SPEC, 0)[0, 0]
    assert hopeless.label == NO_LABEL
    assert {failure.cause for failure in hopeless.failures} == {"no such file"}


def test_testing_drops_nothing(videos: list[Video], tmp_path: Path) -> None:
    mixed = [*videos[:3], Video(tmp_path / "missing.mp4", 2), *videos[3:5]]
    batches = list(eval_loader(EvalClips(mixed, SPEC), 4, 0))
    assert [len(batch.label) for batch in batches] == [4, 2]
    assert torch.cat([batch.label for batch in batches]).tolist() == [video.label for video in mixed]
    assert [failure.cause for batch in batches for failure in batch.failures] == ["no such file"]
