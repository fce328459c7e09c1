"""What tests share: a tiny corpus, a tiny dataset of real video files, and a trained run."""

import faulthandler
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Hundreds of processes start here: what they import is compiled once, also where Python is told to keep no bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("TRITON_INTERPRET", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores; OpenMP reads this when PyTorch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Inductor generates scalar code here, without trying out instruction sets and without processes of its own.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import av
import numpy as np
import pytest
from av.video.stream import VideoStream
from filelock import FileLock

from alt_fast.corpus import Corpus, Entity
from alt_fast.data.config import MotionShapesConfig
from alt_fast.train import main

if TYPE_CHECKING:
    from alt_fast.model.alt import ALT

gc.disable()  # while tests are collected: what that imports stays


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="where kernels are tested")
    parser.addoption("--seed", type=int, help="repeat kernel tests with this seed")


GRACE = 60.0
"""Seconds after pytest-timeout's signal, which nobody hears where native code waits for ever."""

STDERR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STDERR] = os.dup(2)  # what tests write there is captured
    if config.getoption("--device") == "cuda" and os.environ["TRITON_INTERPRET"] != "0":
        raise pytest.UsageError("--device cuda compiles the kernels: set TRITON_INTERPRET=0 (make test-gpu does)")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests differ a hundredfold in length: a process without work takes some of the other's."""
    from xdist.scheduler import WorkStealingScheduling  # not needed for `make test-gpu`

    return WorkStealingScheduling(config, log)


IMPORTED = (
    "alt_fast.train, torch._dynamo.utils, torch._inductor",
    "alt_fast, sympy, nltk, matplotlib.figure, hypothesis, sentence_transformers",
)
"""Modules that bring most of what all tests import, in two halves that take about as long."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """In a new environment two processes compile what is imported, before the workers come and each do it all."""
    torch = find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    if not Path(cache_from_source(torch.origin)).exists():
        for half in [subprocess.Popen([sys.executable, "-c", f"import {names}"]) for names in IMPORTED]:
            half.wait()


LONGEST = ("test_distributed", "test_train", "test_ablations")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked gpu need --device cuda. The longest come first, so that no process ends long after the other."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    if config.getoption("--device") == "cpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU: make test-gpu"))


def pytest_collection_finish() -> None:
    """From here on garbage is collected, but not looked for among a million objects that stay, nor all the time."""
    gc.freeze()
    gc.set_threshold(100_000)
    gc.enable()


def end_if_it_hangs(config: pytest.Config) -> None:
    """If a test does not end at its signal, write where it stands and end the process: xdist goes on with another."""
    if not config.pluginmanager.hasplugin("timeout"):  # not needed for `make test-gpu`
        return
    given = config.getoption("timeout")
    seconds = float(config.getini("timeout") if given is None else given)
    if seconds > 0:
        faulthandler.dump_traceback_later(seconds + GRACE, file=config.stash[STDERR], exit=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    end_if_it_hangs(item.config)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    end_if_it_hangs(item.config)  # anew: pytest gives it up when a test fails


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from the user's cache, nor left in it. What Inductor compiles, its headers too, all share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(shared(tmp_path_factory) / "inductor"))
        yield


@pytest.fixture
def corpus() -> Corpus:
    """Five entities, every category."""
    return Corpus(
        (
            Entity("star", "a shape with five tips", "object"),
            Entity("moon", "a crescent", "object"),
            Entity("tip", "a pointed end", "body"),
            Entity("striped background", "parallel stripes", "scene"),
            Entity("growing", "becoming bigger", "motion"),
        )
    )


def shared(factory: pytest.TempPathFactory) -> Path:
    """A folder of the session, the same for xdist's workers."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills once in the session; of xdist's workers the first to ask does it, the others wait."""
    folder = shared(factory) / name
    made = folder.with_suffix(".made")
    with FileLock(folder.with_suffix(".lock")):
        if not made.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Motion Shapes: 72 training, 36 test and 12 unseen videos."""
    from alt_fast.data.motion_shapes.generate import generate  # with PyTorch, which xdist's own process never needs

    config = MotionShapesConfig(train_per_class=2, test_per_class=1, frames=10, size=48)
    return once(tmp_path_factory, "shapes", lambda root: generate(root, config))


VideoWriter = Callable[..., Path]


def hold_upright(source: Path, target: Path) -> None:
    """Copy an MP4 as a telephone that was held upright would have written it: with a display rotation."""
    set_display_matrix(source, target, (0, 1, -1, 0))


def set_display_matrix(source: Path, target: Path, matrix: Sequence[int]) -> None:
    """Copy an MP4 with another display matrix, where it takes x and where it takes y: a, b, c, d of ISO 14496-12."""
    content = bytearray(source.read_bytes())
    one = (0x10000).to_bytes(4, "big")
    place = content.index(one + bytes(12) + one, content.index(b"tkhd"))
    a, b, c, d = ((0x10000 * number & 0xFFFFFFFF).to_bytes(4, "big") for number in matrix)
    content[place : place + 20] = a + b + bytes(4) + c + d
    target.write_bytes(content)


@pytest.fixture
def write_video(tmp_path: Path) -> VideoWriter:
    """Writes a video whose frame i has grey level 20 + 6 * i, so that frames tell their number."""

    def write(
        name: str, codec: str = "libx264", frames: int = 30, width: int = 64, height: int = 48, **options: int | str
    ) -> Path:
        path = tmp_path / name
        with own_scheduling(), av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=10)
            assert isinstance(stream, VideoStream)
            stream.width, stream.height = width, height
            if codec in ("mpeg4", "mpeg2video"):
                stream.bit_rate = 1_000_000
            stream.pix_fmt = str(options.get("pix_fmt", "yuv420p"))
            if "gop" in options:
                stream.codec_context.gop_size = int(options["gop"])
            if "b_frames" in options:
                stream.codec_context.max_b_frames = int(options["b_frames"])
            for i in range(frames):
                image = np.full((height, width, 3), (20 + 6 * i) % 256, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
        return path

    return write


NoiseWriter = Callable[..., Path]


@pytest.fixture
def write_noise(tmp_path: Path) -> NoiseWriter:
    """`noise_video` in the test's folder."""
    return partial(noise_video, tmp_path)


@contextmanager
def own_scheduling() -> Iterator[None]:
    """Put the calling thread's scheduling back: of root, SVT-AV1's encoder makes one that starves all others."""
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def noise_video(
    folder: Path,
    name: str,
    codec: str,
    frames: int = 20,
    width: int = 64,
    height: int = 48,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video of moving coloured blobs, whose frames, places and colours all differ."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = rng.uniform(0.05, 0.3, (3, 2))
    with own_scheduling(), av.open(str(folder / name), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if codec != "libsvtav1":  # it refuses one for small pictures
            stream.bit_rate = 1_000_000
        for i in range(frames):
            planes = [np.sin(a * x + b * y + 0.4 * i + k) for k, (a, b) in enumerate(waves)]
            image = (128 + 100 * np.stack(planes, -1) + rng.normal(0, 5, (height, width, 3))).clip(0, 255)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return folder / name


SMALL_JOB = [
    *("--config", "motion_shapes_clip"),
    *("--data.shapes.train_per_class", "1", "--data.shapes.test_per_class", "1"),
    *("--data.shapes.frames", "6", "--data.shapes.size", "48", "--data.workers", "1"),
    *("--model.frames", "2", "--pretrain.steps", "4", "--pretrain.batch_size", "8"),
    *("--optim.epochs", "2", "--optim.warmup_epochs", "1", "--optim.batch_size", "12", "--checkpoint_every", "2"),
]
"""Motion Shapes from nothing, made as small as it goes: six steps."""


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of SMALL_JOB, next to its data."""

    def train(root: Path) -> None:
        assert main([*SMALL_JOB, "--out", str(root / "run"), "--data.root", str(root / "data")]) == 0

    return once(tmp_path_factory, "job", train) / "run"


SMALL_LABELS = ["a star growing", "a moon growing", "a star shrinking"]


@contextmanager
def few_blocks(number: int = 1) -> Iterator[None]:
    """Inside, the tiny image tower has one block, or so many: whatever traces takes seconds for every block."""
    from alt_fast.model.clip_weights import TINY_CONFIG

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TINY_CONFIG["vision_cfg"], "layers", number)
        yield


def small_alt(**options: Any) -> "ALT":
    """A random ALT of one block, for clips of two frames."""
    from alt_fast.model.alt import create_model

    corpus = None if "query" in options else Corpus.load("motion_shapes")
    with few_blocks():
        return create_model("alt_tiny", corpus, **{"frames": 2, "depth": 1} | options).eval()


@pytest.fixture(scope="session")
def onnx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `alt-fast export` makes of a small ALT: both halves as ONNX, in 32 and 8 bits."""
    from alt_fast.data.config import AugmentConfig
    from alt_fast.export import main as export
    from alt_fast.inference.trained import TrainedModel, save_model

    def make(folder: Path) -> None:
        path = folder / "small.safetensors"
        save_model(path, TrainedModel(small_alt(pool="size"), SMALL_LABELS, ["{}"], AugmentConfig()))
        command = ["--checkpoint", str(path), "--out", str(folder / "exported"), "--head", "both", "--int8"]
        with few_blocks():
            assert export([*command, "--onnx", "frame_encoder", "decoder"]) == 0

    return once(tmp_path_factory, "onnx", make) / "exported"
