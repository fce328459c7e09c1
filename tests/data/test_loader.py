"""The same clips from every loader, in order, whatever files and processes do."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from alt_fast.data.annotations import Video, read_classes, read_list
from alt_fast.data.augment import apply, cut, draw_record, view_record
from alt_fast.data.batch import Batch, Failure, Request
from alt_fast.data.config import AugmentConfig, ClipSpec, Loading
from alt_fast.data.dataset import NO_LABEL, EpochSampler, EvalClips, TrainClips, batched
from alt_fast.data.decode import decode_clip
from alt_fast.data.loader import Loader, open_backend
from alt_fast.data.pyav import TorchBackend, TorchReader, read_clip
from benchmarks.apart import apart, peak_bytes
from tests.conftest import NoiseWriter, VideoWriter

SPEC = ClipSpec(4, (32, 32), AugmentConfig())
CPU = torch.device("cpu")


@pytest.fixture
def videos(shapes: Path) -> list[Video]:
    return read_list(shapes / "train.txt", read_classes(shapes / "classes.csv"))[0]


def load(clips: TrainClips | EvalClips, keys: list, workers: int = 0, timeout: float = 60) -> list[Batch]:
    backend = TorchBackend(clips, CPU)
    return list(Loader(clips, keys, backend, Loading("torch", workers, timeout)))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_the_records_executed(videos: list[Video], workers: int) -> None:
    clips = TrainClips(videos, SPEC, seed=5)
    keys = list(EpochSampler(len(videos), 6, 5, range(10, 15)))
    found = load(clips, keys, workers)
    assert [len(batch.label) for batch in found] == [6] * 5
    for batch, part in zip(found, keys, strict=True):
        for video, label, (epoch, index) in zip(batch.video, batch.label, part, strict=True):
            record = clips.record((epoch, index))
            frames = decode_clip(videos[index].path, record.positions)
            torch.testing.assert_close(video, apply(record, frames, SPEC.size, SPEC.augment))
            assert label == videos[index].label


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("h264.mp4", "libx264", {"width": 96, "height": 70}),
        ("odd.mkv", "libvpx-vp9", {"width": 37, "height": 53}),
        ("mjpeg.avi", "mjpeg", {"pix_fmt": "yuvj420p"}),
        ("mpeg4.avi", "mpeg4", {"frames": 3}),
    ],
)
@pytest.mark.parametrize("size", [(24, 24), (48, 36), (224, 224)])
def test_clips_cut_frame_by_frame_are_whole_clips_cut_at_once(
    write_noise: NoiseWriter, name: str, codec: str, options: dict, size: tuple[int, int]
) -> None:
    path = write_noise(name, codec, **options)
    config = AugmentConfig(flip=0.5)
    records = [draw_record(np.random.default_rng(seed), config, 6) for seed in range(6)] + [view_record(config, 6)]
    for record in records:
        expected = cut(record, decode_clip(path, record.positions), size)
        assert np.array_equal(read_clip(path, record, size), expected.numpy())


def peak(path: Path, frames: int) -> int:
    """Memory of this process so far, a clip of so many frames included."""
    read_clip(path, view_record(AugmentConfig(), frames), (112, 112))
    return peak_bytes()


def growth(path: Path) -> int:
    """Memory that a long clip takes beyond a short one, in a process that has read nothing else."""
    few = peak(path, 4)
    return peak(path, 96) - few


def test_a_clip_takes_the_memory_of_one_frame_and_of_what_the_model_takes(
    write_video: VideoWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # so that what is freed is not kept for the next frames
    path = write_video("large.mp4", frames=100, width=1280, height=720, gop=25)
    clip, frame = 96 * 3 * 112 * 112, 3 * 1280 * 720  # bytes
    assert apart(growth, path) < 2 * clip + 4 * frame < 96 * frame / 10


def test_bad_videos_are_replaced_the_same_way_every_time(videos: list[Video], tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    mixed = [Video(tmp_path / "empty.mp4", 0), Video(tmp_path / "missing.mp4", 1), *videos[:4]]
    clips = TrainClips(mixed, SPEC, seed=0)
    keys = [[(epoch, 0)] for epoch in range(40)]
    first, second = load(clips, keys), load(clips, keys, workers=2)
    for batch, again in zip(first, second, strict=True):
        assert torch.equal(batch.video, again.video)
        assert torch.equal(batch.label, again.label)
        assert batch.failures == again.failures
        assert batch.failures[0] == Failure(str(tmp_path / "empty.mp4"), "empty file (0 bytes)")
    assert any(len(batch.failures) > 1 for batch in first)  # a replacement may be bad as well
    assert len({int(batch.label) for batch in first}) > 1


def test_a_list_without_one_good_video_gives_no_label(tmp_path: Path) -> None:
    (batch,) = load(TrainClips([Video(tmp_path / "missing.mp4", 0)], SPEC, 0), [[(0, 0)]])
    assert batch.label.tolist() == [NO_LABEL]
    assert {failure.cause for failure in batch.failures} == {"no such file"}


def test_testing_drops_nothing(videos: list[Video], tmp_path: Path) -> None:
    mixed = [*videos[:3], Video(tmp_path / "missing.mp4", 2), *videos[3:5]]
    clips = EvalClips(mixed, SPEC)
    batches = load(clips, list(batched(clips.keys(), 4)))
    assert [len(batch.label) for batch in batches] == [4, 2]
    assert torch.cat([batch.label for batch in batches]).tolist() == [video.label for video in mixed]
    assert [failure.cause for batch in batches for failure in batch.failures] == ["no such file"]


def test_a_jitter_per_frame_goes_with_a_clip_without_jitter(videos: list[Video]) -> None:
    spec = ClipSpec(4, (32, 32), AugmentConfig(jitter=0.5, jitter_per_frame=True))
    clips = TrainClips(videos, spec, seed=0)
    assert len({len(clips.record((0, i)).jitter) for i in range(6)}) == 2
    (batch,) = load(clips, [[(0, i) for i in range(6)]])
    assert batch.video.isfinite().all()


class Trouble(TorchReader):
    """Reads, but not the video with index 1."""

    def __call__(self, request: Request) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        if request.video == 1:
            time.sleep(1000) if self.clips.videos[1].path.name == "hangs" else os._exit(3)
        return super().__call__(request)


@pytest.mark.parametrize(("name", "cause"), [("hangs", "took more than 2 s"), ("dies", "its process died twice, .* 3")])
def test_a_video_that_hangs_or_kills_is_replaced_and_not_tried_again(
    videos: list[Video], name: str, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = [videos[0], Video(Path(name), 0), *videos[1:5]]
    clips = TrainClips(mixed, SPEC, seed=0)
    monkeypatch.setattr(TorchBackend, "reader", lambda self: Trouble(clips))
    started = time.monotonic()
    found = load(clips, [[(epoch, index) for index in range(6)] for epoch in range(12)], workers=2, timeout=2)
    failures = [failure for batch in found for failure in batch.failures]
    assert len(failures) >= 12
    assert {failure.path for failure in failures} == {name}
    assert all(re.match(cause, failure.cause) for failure in failures)
    assert all(NO_LABEL not in batch.label for batch in found)
    assert time.monotonic() - started < 60


def test_memory_does_not_grow_with_the_number_of_clips(videos: list[Video]) -> None:
    clips = TrainClips(videos, SPEC, seed=0)
    asked = []

    class Keys:
        def __len__(self) -> int:
            return 1000

        def __iter__(self) -> Iterator[list[tuple[int, int]]]:
            for i in range(1000):
                asked.append(i)
                yield [(0, i % 50)] * 4

    batches = iter(Loader(clips, Keys(), TorchBackend(clips, CPU), Loading("torch", 2)))
    for _ in range(3):
        next(batches)
    assert len(asked) <= 3 + 3
    batches.close()


def test_which_loader_is_chosen_and_why(videos: list[Video], monkeypatch: pytest.MonkeyPatch) -> None:
    clips = TrainClips(videos, SPEC, seed=0)
    assert open_backend("auto", clips, CPU)[1].startswith("torch, since DALI decodes most codecs on a GPU only")
    assert open_backend("torch", clips, CPU)[1] == "torch, as asked for"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    backend, why = open_backend("auto", clips, torch.device("cuda"))
    assert isinstance(backend, TorchBackend)
    assert "DALI is not installed (pip install 'alt-fast[dali]')" in why
    with pytest.raises(ValueError, match="'dali' was asked for, but DALI is not installed"):
        open_backend("dali", clips, CPU)
    with pytest.raises(ValueError, match="loader must be one of auto, dali, torch, got 'decord'"):
        open_backend("decord", clips, CPU)  # type: ignore[arg-type]


def test_odd_sizes_in_one_batch(write_video: VideoWriter) -> None:
    files = [
        write_video(f"{w}x{h}.mkv", "libvpx-vp9", 6, width=w, height=h) for w, h in [(37, 53), (200, 48), (64, 64)]
    ]
    clips = EvalClips([Video(path, 0) for path in files], SPEC)
    (batch,) = load(clips, [clips.keys()])
    assert batch.video.shape == (3, 4, 3, 32, 32)
    assert batch.failures == []
