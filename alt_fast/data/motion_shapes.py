"""Motion Shapes: a generated video dataset of shapes doing things, real files that decode everywhere (VP9 in WebM).

A label is an object and a motion, "a star circling clockwise". Every motion is directional: played backwards, a clip
shows the opposite motion, so that a single frame cannot give the class away. Some (object, motion) pairs are never
trained on: they are the zero-shot test. Train, test, unseen and pretraining draw from separate random streams and never
share a seed or a background.

    python -m alt_fast.data.motion_shapes --output data/motion_shapes
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from alt_fast.data.rng import Stream, generator

OBJECTS = ("square", "triangle", "star", "cross", "heart", "moon")
MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "circling clockwise",
    "circling counterclockwise",
    "growing",
    "shrinking",
)
OPPOSITE = {motion: MOTIONS[i ^ 1] for i, motion in enumerate(MOTIONS)}
COLORS = {
    "red": (255, 110, 100),
    "orange": (255, 175, 60),
    "yellow": (250, 240, 90),
    "green": (120, 240, 120),
    "cyan": (100, 235, 245),
    "blue": (130, 165, 255),
    "pink": (255, 150, 220),
    "white": (250, 250, 250),
}
TEXTURES = ("striped", "checkered", "dotted", "cloudy")

ORBIT = 0.22  # radius of a circling object's path, as a fraction of the frame

DEFAULT_ROOT = "data/motion_shapes"

_FORMAT_VERSION = 1
_SPLITS = (
    "train",
    "test",
    "unseen",
    "pretrain",
    "few_shot",
)  # position: high part of a clip's counter, so that none coincide
_UNSEEN = frozenset(
    (OBJECTS[i], MOTIONS[(i + step) % len(MOTIONS)]) for i in range(len(OBJECTS)) for step in (0, len(MOTIONS) // 2)
)
PAIRS = tuple((o, m) for o in OBJECTS for m in MOTIONS if (o, m) not in _UNSEEN)
UNSEEN_PAIRS = tuple((o, m) for o in OBJECTS for m in MOTIONS if (o, m) in _UNSEEN)

Image8 = NDArray[np.uint8]


@dataclass(frozen=True)
class MotionShapesConfig:
    """Size of the dataset.

    Args:
        seed: draws every video.
        train_per_class: training videos for each of the 36 trained (object, motion) pairs.
        test_per_class: test videos for each trained pair, and for each of the 12 unseen pairs.
        few_shot_per_class: further videos of each unseen pair, to draw a few from and train on.
        frames: frames per video.
        size: width and height in pixels.
    """

    seed: int = 0
    train_per_class: int = 24
    test_per_class: int = 8
    few_shot_per_class: int = 0
    frames: int = 20
    size: int = 56

    def __post_init__(self) -> None:
        least_of = {"train_per_class": 1, "test_per_class": 1, "few_shot_per_class": 0, "frames": 2, "size": 32}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Clip:
    """Everything random about a video. Lengths and places are fractions of the frame, angles clockwise radians."""

    object: str
    motion: str
    color: str
    texture: str
    center: tuple[float, float]  # x, y of the object half way through
    radius: float
    tilt: float
    phase: float  # where on its circle a circling object is half way through
    amount: float  # distance moved, angle travelled, or log of the growth
    start: float  # when the motion starts and ends, as fractions of the clip
    stop: float
    tint: tuple[int, int, int]
    background: int  # seed of the texture
    drift: tuple[float, float]  # how far the background moves
    noise: float  # standard deviation of pixel noise, in grey levels

    @property
    def label(self) -> str:
        return label_of(self.object, self.motion)


def label_of(object_name: str, motion: str) -> str:
    """ "a star circling clockwise" """
    return f"a {object_name} {motion}"


def draw_clip(seed: int, split: str, index: int, pair: tuple[str, str]) -> Clip:
    """The random choices of clip `index` of a split."""
    part = _SPLITS.index(split)
    rng = generator(seed, Stream.VIDEO, part, index)
    object_name, motion = pair
    amount = {"moving": (0.4, 0.6), "circling": (3.5, 5.0)}.get(motion.split()[0], (0.7, 1.1))
    return Clip(
        object=object_name,
        motion=motion,
        color=str(rng.choice(list(COLORS))),
        texture=str(rng.choice(TEXTURES)),
        center=(float(rng.uniform(0.36, 0.64)), float(rng.uniform(0.36, 0.64))),
        radius=float(np.exp(rng.uniform(np.log(0.16), np.log(0.3)))),
        tilt=float(rng.uniform(-0.25, 0.25)),
        phase=float(rng.uniform(0, 2 * np.pi)),
        amount=float(rng.uniform(*amount)),
        start=float(rng.uniform(0, 0.2)),
        stop=float(rng.uniform(0.8, 1)),
        tint=tuple(int(c) for c in rng.integers(20, 90, 3)),  # type: ignore[arg-type]
        background=part << 48 | index,
        drift=tuple(float(d) for d in rng.uniform(-0.2, 0.2, 2)),  # type: ignore[arg-type]
        noise=float(rng.uniform(0, 8)),
    )


def render(clip: Clip, seed: int, times: Sequence[float], size: int) -> Image8:
    """Frames [len(times), size, size, 3] uint8 RGB of a clip at times in [0, 1]."""
    background = _background(clip, seed, 2 * size)
    noise = generator(seed, Stream.VIDEO, len(_SPLITS), clip.background)
    color = np.array(COLORS[clip.color], np.float32)
    frames = []
    for time in times:
        left, top = (round(size / 2 + d * size * (time - 0.5)) for d in clip.drift)
        mask = _mask(clip, time, size)[..., None]
        frame = background[top : top + size, left : left + size] * (1 - mask) + color * mask
        frame = frame + noise.normal(0, clip.noise, frame.shape)
        frames.append(frame.clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def pose(clip: Clip, time: float) -> tuple[float, float, float]:
    """x, y and radius of the object at a time in [0, 1], in fractions of the frame; y points down.

    Motions are symmetric around the middle of the movement: there, the pose says nothing about the direction.
    """
    progress = float(np.clip((time - clip.start) / (clip.stop - clip.start), 0, 1)) - 0.5
    x, y = clip.center
    radius = clip.radius
    step = clip.amount * progress
    match clip.motion:
        case "moving left":
            x -= step
        case "moving right":
            x += step
        case "moving up":
            y -= step
        case "moving down":
            y += step
        case "circling clockwise" | "circling counterclockwise":
            angle = clip.phase + (step if clip.motion == "circling clockwise" else -step)
            x += ORBIT * float(np.cos(angle))
            y += ORBIT * float(np.sin(angle))
        case "growing":
            radius *= float(np.exp(step))
        case "shrinking":
            radius *= float(np.exp(-step))
    return x, y, radius


def _mask(clip: Clip, time: float, size: int) -> NDArray[np.float32]:
    """Coverage of the object, [size, size] in [0, 1], anti-aliased by drawing at three times the size."""
    x, y, radius = pose(clip, time)
    scale = 3
    turn = np.array([[np.cos(clip.tilt), np.sin(clip.tilt)], [-np.sin(clip.tilt), np.cos(clip.tilt)]])
    points = (_OUTLINES[clip.object] @ turn * radius + (x, y)) * size * scale
    canvas = Image.new("L", (size * scale, size * scale))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points.tolist()], fill=255)
    return np.asarray(canvas.reduce(scale), np.float32) / np.float32(255)


def _outlines() -> dict[str, NDArray[np.float64]]:
    """Corner points of every object, [P, 2], within the unit circle."""

    def around(radii: Sequence[float]) -> NDArray[np.float64]:
        turns = np.arange(len(radii)) / len(radii) * 2 * np.pi - np.pi / 2
        return np.stack([np.cos(turns), np.sin(turns)], 1) * np.array(radii)[:, None]

    arm = 0.32
    cross = [(arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1)]
    cross += [(-x, -y) for x, y in cross]
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    heart_y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    outer = np.linspace(0.35 * np.pi, 1.65 * np.pi, 24)
    inner = outer[::-1]
    moon = np.concatenate(
        [np.stack([np.cos(outer), np.sin(outer)], 1), np.stack([0.78 * np.cos(inner) + 0.5, 0.83 * np.sin(inner)], 1)]
    )
    return {
        "square": around([1, 1, 1, 1]),
        "triangle": around([1, 1, 1]),
        "star": around([1, 0.42] * 5),
        "cross": np.array(cross),
        "heart": np.stack([16 * np.sin(t) ** 3, -heart_y], 1) / 17,
        "moon": moon,
    }


_OUTLINES = _outlines()


def _background(clip: Clip, seed: int, size: int) -> NDArray[np.float32]:
    """A muted texture, [size, size, 3], of its own seed."""
    rng = generator(seed, Stream.VIDEO, len(_SPLITS) + 1, clip.background)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    turn, period = rng.uniform(0, np.pi), rng.uniform(0.06, 0.16)
    u = (x * np.cos(turn) + y * np.sin(turn)) / period
    v = (y * np.cos(turn) - x * np.sin(turn)) / period
    match clip.texture:
        case "striped":
            pattern = (u % 1 < 0.5).astype(np.float32)
        case "checkered":
            pattern = ((u % 1 < 0.5) ^ (v % 1 < 0.5)).astype(np.float32)
        case "dotted":
            pattern = ((u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.1).astype(np.float32)
        case _:
            cells = Image.fromarray(rng.integers(0, 255, (9, 9), dtype=np.uint8))
            pattern = np.asarray(cells.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255
    contrast = rng.uniform(15, 40)
    return np.array(clip.tint, np.float32) + contrast * (pattern[..., None] - 0.5)


def write_video(path: Path, frames: Image8, rate: int = 10) -> None:
    """Write frames [T, H, W, 3] as VP9 in WebM, always the same bytes. The file appears whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    options = {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "8"}
    with av.open(str(partial), "w", format="webm", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    os.replace(partial, path)


def generate(root: str | Path, config: MotionShapesConfig, workers: int | None = None) -> None:
    """Write the dataset under `root`; files already there are kept, so an interrupted call can be repeated.

    Leaves {train,test,unseen}.txt (`path label` lines), few_shot.txt when asked for,
    {classes,unseen_classes}.csv (`id,name`) and dataset.json.
    Raises ValueError when `root` holds a dataset of another configuration.
    """
    root = Path(root)
    manifest = root / "dataset.json"
    content = {"dataset": "motion_shapes", "version": _FORMAT_VERSION, **asdict(config)}
    if manifest.exists():
        found = json.loads(manifest.read_text())
        if {**found, "complete": None} != {**content, "complete": None}:
            raise ValueError(f"{root} holds another dataset ({found}); asked for {content}: choose another folder")
        if found["complete"]:
            return
    root.mkdir(parents=True, exist_ok=True)
    _write_json(manifest, {**content, "complete": False})
    jobs = [
        (root, config, split, index, pair)
        for split, pairs, count in _plan(config)
        for index, pair in enumerate(pair for pair in pairs for _ in range(count))
        if not (root / split / f"{index:05d}.webm").exists()
    ]
    for split, _, _ in _plan(config):
        (root / split).mkdir(exist_ok=True)
    # A DataLoader rather than a process pool: its workers end when their parent is killed.
    writers = DataLoader(
        _Writer(jobs), batch_size=None, num_workers=os.cpu_count() or 1 if workers is None else workers
    )
    for _ in tqdm(writers, "Motion Shapes", unit="video", disable=None):
        pass
    for split, pairs, count in _plan(config):
        lines = (f"{split}/{i * count + k:05d}.webm {i}\n" for i in range(len(pairs)) for k in range(count))
        (root / f"{split}.txt").write_text("".join(lines))
    for name, pairs in (("classes.csv", PAIRS), ("unseen_classes.csv", UNSEEN_PAIRS)):
        (root / name).write_text("id,name\n" + "".join(f"{i},{label_of(*pair)}\n" for i, pair in enumerate(pairs)))
    _write_json(manifest, {**content, "complete": True})


def _plan(config: MotionShapesConfig) -> list[tuple[str, tuple[tuple[str, str], ...], int]]:
    """(split, classes, videos per class)"""
    plan = [
        ("train", PAIRS, config.train_per_class),
        ("test", PAIRS, config.test_per_class),
        ("unseen", UNSEEN_PAIRS, config.test_per_class),
        ("few_shot", UNSEEN_PAIRS, config.few_shot_per_class),
    ]
    return [entry for entry in plan if entry[2]]


class _Writer(Dataset[int]):
    """Writes a job's video when it is asked for."""

    def __init__(self, jobs: Sequence[tuple[Path, MotionShapesConfig, str, int, tuple[str, str]]]) -> None:
        self.jobs = jobs

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, number: int) -> int:
        root, config, split, index, pair = self.jobs[number]
        clip = draw_clip(config.seed, split, index, pair)
        frames = render(clip, config.seed, np.linspace(0, 1, config.frames).tolist(), config.size)
        write_video(root / split / f"{index:05d}.webm", frames)
        return number


def _write_json(path: Path, content: dict[str, object]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m alt_fast.data.motion_shapes", description="Write Motion Shapes.")
    parser.add_argument("--output", required=True, help="folder to write to")
    for name, value in asdict(MotionShapesConfig()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"default {value}")
    arguments = vars(parser.parse_args())
    try:
        generate(arguments.pop("output"), MotionShapesConfig(**arguments))
    except ValueError as e:
        parser.error(str(e))


if __name__ == "__main__":
    main()
