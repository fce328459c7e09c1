"""From video files to clips: decoding alone, decoding with augmentation, more workers, and a training that waits."""

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from alt_fast.data.annotations import Video
from alt_fast.data.augment import apply
from alt_fast.data.config import AugmentConfig, ClipSpec, LoaderName, Loading
from alt_fast.data.dataset import EpochSampler, TrainClips
from alt_fast.data.decode import decode_clip
from alt_fast.data.loader import Loader, open_backend
from alt_fast.model.config import PRESETS
from benchmarks.audit import CLASSES, make_model
from benchmarks.conftest import Cut, RunRace
from benchmarks.videos import write_video

OURS, WHOLE, DALI = "alt_fast", "whole file, PyAV", "alt_fast, dali"
CODECS = {"h264": ("libx264", "mp4"), "vp9": ("libvpx-vp9", "webm")}
SPEC = ClipSpec(8, (224, 224), AugmentConfig())
CLIPS, BATCH = 32, 8  # of one timing, and of a batch: the same number for both workers
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

Decode = Callable[[Path, Sequence[float]], NDArray[np.uint8]]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Two videos of each codec."""
    folder = tmp_path_factory.mktemp("videos")
    made: dict[str, list[Path]] = {}
    for name, (codec, suffix) in CODECS.items():
        made[name] = [folder / f"{name}-{seed}.{suffix}" for seed in range(2)]
        for seed, path in enumerate(made[name]):
            write_video(path, codec, seed)
    return made


def whole_file(path: Path, positions: Sequence[float]) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack([frames[int(p * len(frames))] for p in positions])


def with_decord(path: Path, positions: Sequence[float]) -> NDArray[np.uint8]:
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    return reader.get_batch([int(p * len(reader)) for p in positions]).asnumpy()


def with_torchcodec(path: Path, positions: Sequence[float]) -> NDArray[np.uint8]:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, dimension_order="NHWC")
    count = decoder.metadata.num_frames
    return decoder.get_frames_at([int(p * count) for p in positions]).data.numpy()


DECODERS: dict[str, Decode] = {
    OURS: decode_clip,
    WHOLE: whole_file,
    "decord": with_decord,
    "torchcodec": with_torchcodec,
}


def usable(path: Path) -> tuple[dict[str, Decode], dict[str, str]]:
    """Decoders that run here, and why the others do not."""
    found, skipped = {}, {}
    for name, decode in DECODERS.items():
        try:
            decode(path, [0.5])
        except Exception as error:  # not installed, or built for other libraries
            skipped[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"[:200]
        else:
            found[name] = decode
    return found, skipped


def brightness(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Of blocks of 16 x 16 pixels: the same for all that decode alike, however they convert to RGB."""
    blocks = frames[:, :256, :336].reshape(len(frames), 16, 16, 21, 16, 3)
    return blocks.mean(axis=(2, 4)) @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("codec", list(CODECS))
def test_decode(codec: str, files: dict[str, list[Path]], race: RunRace) -> None:
    """Eight frames of a video, one a segment, in one thread; no decoder may show other frames than the whole file's."""
    decoders, skipped = usable(files[codec][0])
    rng = np.random.default_rng(0)
    positions = [((np.arange(8) + rng.random(8)) / 8).tolist() for _ in files[codec]]
    expected = brightness(whole_file(files[codec][0], positions[0]))
    for name, decode in decoders.items():
        difference = np.abs(brightness(decode(files[codec][0], positions[0])) - expected)
        assert difference.max() < 4, f"{name} decodes other frames"

    def step(decode: Decode) -> None:
        for path, places in zip(files[codec], positions, strict=True):
            decode(path, places)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        race(
            f"decode 8 of 300 frames, {codec}, 340 x 256, one thread, 2 files",
            {name: partial(step, decode) for name, decode in decoders.items()},
            OURS,
            WHOLE,
            rounds=5,
            graphs=set(),
            warm_up=1,
            skipped=skipped,
            clips=len(positions),
        )
    finally:
        torch.set_num_threads(threads)


class PlainClips(Dataset[tuple[torch.Tensor, int]]):
    """The same records by another decoder, in PyTorch's DataLoader."""

    def __init__(self, clips: TrainClips, decode: Decode) -> None:
        self.clips, self.decode = clips, decode

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        record = self.clips.record(key)
        path, label = self.clips.videos[key[1]]
        return apply(record, self.decode(path, record.positions), SPEC.size, SPEC.augment), label


def keys_of(videos: Sequence[Video]) -> list[list[tuple[int, int]]]:
    keys = [(epoch, i) for epoch in range(CLIPS // len(videos)) for i in range(len(videos))]
    return [keys[start : start + BATCH] for start in range(0, CLIPS, BATCH)]


def load_ours(clips: TrainClips, device: str, loader: LoaderName, workers: int) -> None:
    backend, _ = open_backend(loader, clips, torch.device(device), threads=workers)
    for batch in Loader(clips, keys_of(clips.videos), backend, Loading(loader, workers)):
        assert len(batch.video) == BATCH


def load_plain(clips: TrainClips, device: str, decode: Decode, workers: int) -> None:
    for video, _ in DataLoader(PlainClips(clips, decode), batch_sampler=keys_of(clips.videos), num_workers=workers):
        assert len(video.to(device)) == BATCH


def why_no_dali(clips: TrainClips, device: str) -> str | None:
    """None where DALI can load."""
    try:
        backend, _ = open_backend("dali", clips, torch.device(device))
        next(iter(Loader(clips, [[(0, 0)]], backend, Loading("dali", 0))))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"[:200]
    return None


@pytest.mark.parametrize("codec", list(CODECS))
def test_load(codec: str, files: dict[str, list[Path]], race: RunRace, cut: Cut, device: str) -> None:
    """Clips decoded, cropped, resized, flipped, coloured and normalised, with the start of the workers."""
    case = f"load {CLIPS} clips, {codec}, {CORES} workers, onto {device}"
    if codec != "h264":
        cut(case)
    clips = TrainClips([Video(path, i) for i, path in enumerate(files[codec])], SPEC, seed=0)
    decoders, skipped = usable(files[codec][0])
    steps: dict[str, Any] = {f"{OURS}, torch": partial(load_ours, clips, device, "torch", CORES)}
    why = why_no_dali(clips, device)
    if why is None:
        steps[DALI] = partial(load_ours, clips, device, "dali", CORES)
    else:
        skipped[DALI] = why
    if codec == "vp9":
        del decoders[WHOLE]  # seconds per round, and slowest by far
    for name, decode in decoders.items():
        steps[f"DataLoader, {name}"] = partial(load_plain, clips, device, decode, CORES)
    race(
        case,
        steps,
        f"{OURS}, torch",
        f"DataLoader, {OURS}",
        rounds=3,
        graphs=set(),
        warm_up=1,
        skipped=skipped,
        further=[f"DataLoader, {name}" for name in decoders if name in (WHOLE, "decord")],
        clips=CLIPS,
    )


def test_workers(files: dict[str, list[Path]], race: RunRace, device: str) -> None:
    """Scaling up to the cores."""
    clips = TrainClips([Video(path, i) for i, path in enumerate(files["h264"])], SPEC, seed=0)
    counts = sorted({1, 2, CORES, *(2**i for i in range(CORES.bit_length()) if 2**i <= CORES)})
    steps = {f"{count} workers": partial(load_ours, clips, device, "torch", count) for count in counts}
    race(
        f"workers, h264, {CLIPS} clips",
        steps,
        f"{counts[-1]} workers",
        "1 workers",
        rounds=5,
        graphs=set(),
        clips=CLIPS,
    )


def test_training_waits(files: dict[str, list[Path]], race: RunRace, device: str) -> None:
    """Steps of training fed by a loader, whose start counts, and on one batch in memory.

    wait_share is the share of the time spent without a batch.
    """
    gpu = device == "cuda"
    config = PRESETS["alt_b16" if gpu else "alt_tiny"]
    batch_size, steps = (32, 12) if gpu else (8, 2)
    torch.manual_seed(0)
    model = make_model(config).to(device).train()
    model.text.requires_grad_(False)
    spec = ClipSpec(config.frames, (model.encoder.visual.image_size[0],) * 2, AugmentConfig())
    videos = [Video(path, i) for i, path in enumerate(files["h264"] * 16)]
    clips = TrainClips(videos, spec, seed=0)
    classes = F.normalize(torch.randn(CLASSES, model.alignment.entities.shape[1], device=device), dim=-1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-6, fused=True)
    forward = torch.compile(model, dynamic=False) if gpu else model
    seed = torch.tensor(1, device=device)
    dtype = torch.bfloat16 if gpu else torch.float32

    def train(video: torch.Tensor, label: torch.Tensor) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=gpu):
            logits = forward(video, classes, seed).logits
        loss = F.cross_entropy(logits.float(), label % CLASSES)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # as a trainer that logs

    waits: dict[str, list[float]] = defaultdict(list)  # of every round
    wait_share: dict[str, float] = {}  # their median

    def run(loader: LoaderName) -> None:
        backend, _ = open_backend(loader, clips, torch.device(device), dtype, CORES)
        keys = EpochSampler(len(videos), batch_size, 0, range(steps))
        batches = iter(Loader(clips, keys, backend, Loading(loader, CORES)))
        started, waited = time.perf_counter(), 0.0
        for _ in range(steps):
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            train(batch.video, batch.label)
        batches.close()
        waits[loader].append(waited / (time.perf_counter() - started))
        wait_share[f"{OURS}, {loader}"] = statistics.median(waits[loader])

    video = torch.randn(batch_size, spec.num_frames, 3, *spec.size, device=device, dtype=dtype)
    label = torch.arange(batch_size, device=device)

    def in_memory() -> None:
        for _ in range(steps):
            train(video, label)

    contestants = {"data in memory": in_memory, f"{OURS}, torch": partial(run, "torch")}
    why = why_no_dali(clips, device)
    if why is None:
        contestants[f"{OURS}, dali"] = partial(run, "dali")
    name = "ALT-B/16" if gpu else "the tiny ALT"
    race(
        f"training {name}, {steps} steps of {batch_size} clips, h264, {CORES} workers",
        contestants,
        f"{OURS}, torch",
        "data in memory",
        rounds=5 if gpu else 3,
        graphs=set(),
        warm_up=1,
        skipped={} if why is None else {f"{OURS}, dali": why},
        wait_share=wait_share,
    )
