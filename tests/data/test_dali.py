"""DALI's clips are PyAV's and torch's, whatever DALI can and cannot decode.

Tolerance, in levels of 255 before colours: 1 inside, since both round once after resizing; 16 in the outermost pixels,
where DALI repeats the border and torch leaves out what is outside.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from alt_fast.data.annotations import Video
from alt_fast.data.augment import MEAN_STD, color_map, crop_box
from alt_fast.data.batch import Batch, Request
from alt_fast.data.config import AugmentConfig, ClipSpec, Loading
from alt_fast.data.dataset import NO_LABEL, EpochSampler, EvalClips, TrainClips, batched
from alt_fast.data.decode import decode_frames, index_video
from alt_fast.data.loader import Loader, open_backend
from alt_fast.train import main
from benchmarks.apart import apart, peak_bytes
from tests.conftest import SMALL_JOB, NoiseWriter, VideoWriter, noise_video, once

pytest.importorskip("nvidia.dali")
from alt_fast.data import dali

PLAIN = AugmentConfig(jitter=0, gray=0)
CPU = torch.device("cpu")
FILES: list[tuple[str, str, dict[str, Any]]] = [
    ("vp9.webm", "libvpx-vp9", {}),
    ("vp8.webm", "libvpx", {"width": 96, "height": 50}),
    ("mjpeg.avi", "mjpeg", {"pix_fmt": "yuvj420p"}),
    ("odd.mkv", "libvpx-vp9", {"width": 37, "height": 53}),
    ("one.webm", "libvpx-vp9", {"frames": 1}),
    ("h264.mp4", "libx264", {}),
    ("hevc.mp4", "libx265", {"width": 128}),
    ("av1.mkv", "libsvtav1", {}),
    ("mpeg4.avi", "mpeg4", {}),
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Video]:
    def write(folder: Path) -> None:
        for name, codec, options in FILES:
            noise_video(folder, name, codec, **options)

    folder = once(tmp_path_factory, "codecs", write)
    return [Video(folder / name, i) for i, (name, _, _) in enumerate(FILES)]


def load(
    clips: TrainClips | EvalClips, keys: list, loader: str, workers: int = 0, device: torch.device = CPU
) -> tuple[list[Batch], Counter[str]]:
    backend, _ = open_backend(loader, clips, device, threads=2)  # type: ignore[arg-type]
    return list(Loader(clips, keys, backend, Loading(loader, workers))), backend.counts  # type: ignore[arg-type]


def levels(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences of normalised clips in levels of 255: inside, and in the outermost two pixels."""
    std = torch.tensor(MEAN_STD["imagenet"][1]).view(3, 1, 1)
    difference = ((first - second).abs().cpu() * std * 255).flatten(0, 2)
    inside = torch.zeros(difference.shape[1:], dtype=torch.bool)
    inside[2:-2, 2:-2] = True
    return difference[:, inside], difference[:, ~inside]


@pytest.mark.parametrize("size", [24, 224])
def test_the_same_clips_in_every_codec_and_size(videos: list[Video], size: int) -> None:
    clips = TrainClips(videos, ClipSpec(4, (size, size), PLAIN), seed=1)
    keys = [[(epoch, i) for i in range(len(videos))] for epoch in range(3)]
    torch_batches, _ = load(clips, keys, "torch")
    dali_batches, ways = load(clips, keys, "dali")
    for expected, found in zip(torch_batches, dali_batches, strict=True):
        assert torch.equal(found.label, expected.label)
        assert found.video.shape == expected.video.shape
        inside, edge = levels(found.video, expected.video)
        assert inside.max() <= 1.01
        assert inside.mean() < 0.3
        assert edge.max() <= 16
        assert edge.mean() < 1
    assert ways == {
        "decoded by DALI on a CPU": 15,
        "decoded by PyAV: DALI does not decode h264 on a CPU": 3,
        "decoded by PyAV: DALI does not decode hevc on a CPU": 3,
        "decoded by PyAV: DALI does not decode av1 on a CPU": 3,
        "decoded by PyAV: DALI does not decode mpeg4 on a CPU": 3,
    }


@pytest.mark.parametrize("per_frame", [False, True])
def test_colours_are_the_same(videos: list[Video], per_frame: bool) -> None:
    """A level before colours may be several after: brightness, contrast and saturation multiply."""
    config = AugmentConfig(jitter=1, gray=0.3, jitter_per_frame=per_frame)
    clips = TrainClips(videos, ClipSpec(4, (48, 48), config), seed=2)
    keys = [[(epoch, i)] for epoch in range(4) for i in range(len(videos))]
    for expected, found, [key] in zip(load(clips, keys, "torch")[0], load(clips, keys, "dali")[0], keys, strict=True):
        gain = 255 * color_map(clips.record(key))[..., :3].abs().sum(-1).max()
        inside, _ = levels(found.video, expected.video)
        assert inside.max() <= 1.01 * gain
        assert inside.mean() < 0.3 * gain


def test_views_are_the_same(videos: list[Video]) -> None:
    clips = EvalClips(videos, ClipSpec(4, (48, 48), PLAIN), crops=3, clips=2)
    keys = list(batched(clips.keys(), 7))
    torch_batches, dali_batches = load(clips, keys, "torch")[0], load(clips, keys, "dali")[0]
    assert [len(batch.label) for batch in dali_batches] == [7] * 7 + [5]
    for expected, found in zip(torch_batches, dali_batches, strict=True):
        assert levels(found.video, expected.video)[0].max() <= 1.01


def test_any_number_of_processes_and_any_first_step_give_the_same(videos: list[Video]) -> None:
    clips = TrainClips(videos, ClipSpec(4, (32, 32), AugmentConfig()), seed=3)
    everything, _ = load(clips, list(EpochSampler(len(videos), 3, 3, range(9))), "dali")
    rest, _ = load(clips, list(EpochSampler(len(videos), 3, 3, range(4, 9))), "dali", workers=2)
    assert [torch.equal(a.video, b.video) for a, b in zip(everything[4:], rest, strict=True)] == [True] * 5


def test_batches_that_are_kept_do_not_change(videos: list[Video]) -> None:
    """Tensors share DALI's memory."""
    clips = TrainClips(videos, ClipSpec(4, (32, 32), AugmentConfig()), seed=3)
    backend, _ = open_backend("dali", clips, CPU)
    kept, copies = [], []
    for batch in Loader(clips, [[(e, i) for i in range(6)] for e in range(6)], backend, Loading("dali", 0)):
        kept.append(batch.video)
        copies.append(batch.video.clone())
    assert all(torch.equal(*pair) for pair in zip(kept, copies, strict=True))


def test_cropped_frames_give_what_whole_ones_give(videos: list[Video], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what PyAV decodes, the graph is given no more than the crop."""
    clips = TrainClips(videos, ClipSpec(4, (32, 32), AugmentConfig()), seed=4)
    keys = [[(epoch, i) for i in (5, 6, 7, 8)] for epoch in range(4)]  # what DALI does not decode on a CPU
    found, _ = load(clips, keys, "dali")

    def read_whole(reader: dali.DaliReader, request: Request) -> dali.DaliItem:
        item = read(reader, request)
        assert request.video is not None
        path, record = videos[request.video].path, clips.record(request.key)
        frames = np.ascontiguousarray(decode_frames(path, index_video(path), item.frames.tolist()))
        assert item.decoded.size < frames.size
        return item._replace(decoded=frames, box=np.array(crop_box(record, *frames.shape[1:3]), np.int32))

    read = dali.DaliReader.__call__
    monkeypatch.setattr(dali.DaliReader, "__call__", read_whole)
    expected, _ = load(clips, keys, "dali")
    assert all(torch.equal(one.video, other.video) for one, other in zip(found, expected, strict=True))


def test_of_large_frames_the_graph_is_given_the_torch_loader_s_clip(
    videos: list[Video], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded by either: nine frames of 64 x 48 are above this limit, eight are not."""
    monkeypatch.setattr(dali, "_MAX_WHOLE", 3 * 8 * 64 * 48)
    for frames, large in ((8, False), (9, True)):
        clips = TrainClips([videos[0], videos[5]], ClipSpec(frames, (32, 32), AugmentConfig(flip=0.5)), seed=4)
        keys = [[(epoch, i) for i in range(2)] for epoch in range(6)]
        assert len({clips.record(key).flip for batch in keys for key in batch}) == 2
        found, ways = load(clips, keys, "dali")
        if large:
            assert ways == {
                "decoded by PyAV: whole frames of a clip are larger than 0 MiB": 6,
                "decoded by PyAV: DALI does not decode h264 on a CPU": 6,
            }
            for one, other in zip(found, load(clips, keys, "torch")[0], strict=True):
                torch.testing.assert_close(one.video, other.video, rtol=0, atol=1e-5)
        else:
            assert ways["decoded by DALI on a CPU"] == 6


def growth(path: Path) -> int:
    """Memory that a batch of clips takes beyond one of a short clip, in a process that has read nothing else."""
    peaks = []
    for frames, count in ((1, 1), (8, 4)):
        load(EvalClips([Video(path, 0)] * count, ClipSpec(frames, (112, 112), PLAIN)), [[(0, 0)] * count], "dali")
        peaks.append(peak_bytes())
    return peaks[1] - peaks[0]


@pytest.mark.parametrize(("codec", "colours"), [("mjpeg", "yuvj420p"), ("mpeg4", "yuv420p")])
def test_a_batch_does_not_take_the_memory_of_its_whole_frames(
    codec: str, colours: str, write_video: VideoWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of smaller frames, DALI decodes the one codec on a CPU, and PyAV the other."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # so that what is freed is not kept for the next frames
    path = write_video("large.avi", codec, frames=8, width=3840, height=2160, pix_fmt=colours)
    frame, clip = 3 * 3840 * 2160, 3 * 8 * 112 * 112  # bytes
    assert apart(growth, path) < 4 * frame + 80 * clip < 32 * frame / 6


def test_batches_may_grow(videos: list[Video]) -> None:
    clips = TrainClips(videos, ClipSpec(2, (32, 32), PLAIN), seed=3)
    keys = [[(0, i) for i in range(n)] for n in (1, 2, 5, 3)]
    assert [len(batch.label) for batch in load(clips, keys, "dali")[0]] == [1, 2, 5, 3]


def test_when_dali_fails_pyav_takes_over(videos: list[Video], monkeypatch: pytest.MonkeyPatch) -> None:
    """Here DALI is told to decode what it cannot."""
    clips = TrainClips(videos, ClipSpec(4, (32, 32), PLAIN), seed=1)
    keys = [[(0, 0), (0, 1)], [(0, 2), (0, 5)], [(0, 3), (0, 1)], [(1, 0), (1, 2)], [(2, 0), (2, 2)], [(3, 0), (3, 2)]]
    expected, _ = load(clips, keys, "dali")
    monkeypatch.setattr(dali, "reason_against", lambda path, index, gpu: None)
    found, ways = load(clips, keys, "dali")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.video, other.video, rtol=0, atol=1e-5)
    assert ways["decoded by DALI on a CPU"] >= 4
    assert ways["decoded by PyAV: DALI failed on it or on one beside it"] >= 2
    assert sum(ways.values()) == 12


def test_after_some_failures_dali_decodes_no_more(videos: list[Video], monkeypatch: pytest.MonkeyPatch) -> None:
    clips = TrainClips(videos, ClipSpec(2, (32, 32), PLAIN), seed=1)
    monkeypatch.setattr(dali, "reason_against", lambda path, index, gpu: None)
    _, ways = load(clips, [[(epoch, 5), (epoch, 0)] for epoch in range(24)], "dali")
    assert ways == {"decoded by PyAV: DALI failed on it or on one beside it": 48}
    backend = open_backend("dali", clips, CPU)[0]
    assert isinstance(backend, dali.DaliBackend)
    built, build = [], backend._build

    def counted(size: int) -> Any:
        built.append(size)
        return build(size)

    monkeypatch.setattr(backend, "_build", counted)
    list(Loader(clips, [[(epoch, 5)] for epoch in range(24)], backend, Loading("dali", 0)))
    assert len(built) == 1 + dali._FAILURES


def test_auto_tries_dali_out(videos: list[Video], monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be no GPU here, or one without NVDEC's library: then torch is taken, and told why."""
    clips = TrainClips(videos, ClipSpec(2, (32, 32), PLAIN), seed=1)
    dali.DaliBackend(clips, CPU, torch.float32, 1).try_out()

    def no_driver(self: dali.DaliBackend, batch_size: int) -> None:
        raise RuntimeError("no driver")

    monkeypatch.setattr(dali.DaliBackend, "_build", no_driver)
    _, why = open_backend("auto", clips, torch.device("cuda"))
    assert why == "torch, since DALI does not run here (no driver)"


def test_a_file_that_nobody_can_decode_is_a_failure(videos: list[Video], tmp_path: Path) -> None:
    content = bytearray(videos[0].path.read_bytes())
    place = len(content) // 2
    content[place : place + 3000] = np.random.default_rng(0).bytes(3000)
    (tmp_path / "broken.webm").write_bytes(content)
    mixed = [Video(tmp_path / "broken.webm", 0), *videos[1:4]]
    clips = EvalClips(mixed, ClipSpec(16, (32, 32), PLAIN))
    (batch,), ways = load(clips, [clips.keys()], "dali")
    assert [failure.path for failure in batch.failures] == [str(tmp_path / "broken.webm")]
    assert batch.label.tolist() == [0, 1, 2, 3]
    assert ways["no video"] == 1


def test_a_list_without_one_good_video_gives_no_label(tmp_path: Path) -> None:
    clips = TrainClips([Video(tmp_path / "missing.mp4", 0)], ClipSpec(2, (32, 32), PLAIN), 0)
    (batch,), _ = load(clips, [[(0, 0)]], "dali")
    assert batch.label.tolist() == [NO_LABEL]


@pytest.mark.parametrize(("gpu", "where"), [(False, "CPU"), (True, "GPU")])
def test_what_dali_is_not_given(videos: list[Video], gpu: bool, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = videos[0].path
    index = index_video(path)
    assert dali.reason_against(path, index, gpu) is None
    cases: list[tuple[dict[str, Any], str]] = [
        ({"codec": "prores"}, f"DALI does not decode prores on a {where}"),
        ({"pixel_format": "yuv420p10le"}, "DALI is not used for yuv420p10le"),
        ({"times": None}, "its packets carry no times"),
        ({"misdated": True}, "its frames may come with each other's times"),
        ({"keyframes": list(index.times or ())[2:3]}, "it begins before its first keyframe"),
    ]
    for changes, reason in cases:
        assert dali.reason_against(path, replace(index, **changes), gpu) == reason
    bt709 = dali.reason_against(path, replace(index, colorspace=1), gpu)
    assert bt709 == (None if gpu else "DALI's CPU decoder takes every video for BT.601")
    monkeypatch.setattr(dali, "_MAX_BYTES", 2**20 - 1)
    monkeypatch.setattr(dali, "locate", lambda path: type("Location", (), {"size": 2**20}))
    assert dali.reason_against(path, index, gpu) == "larger than 0 MiB"
    monkeypatch.undo()
    monkeypatch.setattr(dali, "is_turned", lambda path: True)
    assert dali.reason_against(path, index, gpu) == "DALI does not turn what was filmed upright"


def test_every_process_decodes_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without a number is the process's current one."""
    asked: dict[str, Any] = {}

    def graph(*args: object, **options: object) -> Any:
        asked.update(options)
        return SimpleNamespace(build=lambda: None)

    monkeypatch.setattr(dali, "clip_graph", graph)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    clips = EvalClips([], ClipSpec(2, (16, 16), AugmentConfig()))
    for name, index in (("cuda", 3), ("cuda:1", 1), ("cpu", None)):
        dali.DaliBackend(clips, torch.device(name), torch.float32, 2)._build(4)
        assert asked["device_id"] == index


def test_dali_s_frames_are_pyav_s(write_noise: NoiseWriter) -> None:
    """Exactly, hidden frames of VP8 and VP9 included."""
    for codec in ("libvpx", "libvpx-vp9"):
        hidden = {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good", "cpu-used": "4"}
        path = write_noise(f"{codec}.webm", codec, frames=60, options=hidden)
        clips = EvalClips([Video(path, 0)], ClipSpec(60, (48, 64), AugmentConfig(test_crop=1.0)))
        item = dali.DaliReader(clips, gpu=False)(Request((0, 0), 0))
        assert item.is_encoded
        (batch,), _ = load(clips, [[(0, 0)]], "dali")
        frames = decode_frames(path, index_video(path), range(60))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in MEAN_STD["imagenet"])
        square = torch.from_numpy(frames[:, :, 8:56].copy()).permute(0, 3, 1, 2)
        found = (batch.video[0] * std + mean) * 255
        resized = torch.nn.functional.interpolate(square.float(), (48, 64), mode="bilinear", antialias=True)
        assert (found - resized).abs().max() <= 0.51  # one rounding


def test_training_with_dali(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL_JOB, "--out", str(tmp_path / "run"), "--data.root", str(trained_run.parent / "data")]
    assert main([*arguments, "--data.loader", "dali", "--frame_only", "false"]) == 0
    out = capsys.readouterr().out
    assert "alt: loader dali, as asked for" in out
    assert "alt: 72 clips decoded by DALI on a CPU" in out


@pytest.mark.gpu
def test_the_same_clips_on_a_gpu(videos: list[Video]) -> None:
    """NVDEC decodes bit-exactly, but converts colours its own way: a few levels."""
    clips = TrainClips(videos, ClipSpec(4, (224, 224), PLAIN), seed=1)
    keys = [[(epoch, i) for i in range(len(videos))] for epoch in range(3)]
    gpu = torch.device("cuda")
    found, ways = load(clips, keys, "dali", workers=2, device=gpu)
    assert ways["decoded by DALI on a GPU"] > 0
    for expected, batch in zip(load(clips, keys, "torch")[0], found, strict=True):
        assert batch.video.is_cuda
        assert torch.equal(batch.label.cpu(), expected.label)
        inside, _ = levels(batch.video.cpu(), expected.video)
        assert inside.mean() < 2
