"""The generated dataset keeps its promises."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alt_fast.data.__main__ import main
from alt_fast.data.annotations import read_classes, read_list
from alt_fast.data.config import MotionShapesConfig
from alt_fast.data.decode import decode_clip
from alt_fast.data.motion_shapes import draw
from alt_fast.data.motion_shapes.captions import captioned_frame
from alt_fast.data.motion_shapes.draw import (
    MOTIONS,
    OBJECTS,
    OPPOSITE,
    PAIRS,
    UNSEEN_PAIRS,
    Clip,
    draw_clip,
    pose,
    render,
)
from alt_fast.data.motion_shapes.generate import generate

TIMES = np.linspace(0, 1, 21).tolist()


def path_of(clip: Clip) -> np.ndarray:
    return np.array([pose(clip, time) for time in TIMES])


def test_pairs_cover_everything_and_never_overlap() -> None:
    assert not set(PAIRS) & set(UNSEEN_PAIRS)
    assert set(PAIRS) | set(UNSEEN_PAIRS) == {(o, m) for o in OBJECTS for m in MOTIONS}
    assert {o for o, _ in UNSEEN_PAIRS} == {o for o, _ in PAIRS} == set(OBJECTS)
    assert {m for _, m in UNSEEN_PAIRS} == {m for _, m in PAIRS} == set(MOTIONS)


@pytest.mark.parametrize("motion", MOTIONS)
def test_played_backwards_a_clip_shows_the_opposite_motion(motion: str) -> None:
    clip = replace(draw_clip(0, "train", 5, ("star", motion)), start=0.1, stop=0.9)
    opposite = replace(clip, motion=OPPOSITE[motion])
    np.testing.assert_allclose(path_of(clip)[::-1], path_of(opposite), atol=1e-9)
    assert OPPOSITE[OPPOSITE[motion]] == motion != OPPOSITE[motion]


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_video_shows_the_motion(motion: str) -> None:
    clip = draw_clip(3, "train", 8, ("square", motion))
    frames = render(clip, 3, TIMES, 96).astype(float)
    background = render(replace(clip, radius=1e-6), 3, TIMES, 96).astype(float)
    moved = np.abs(frames - background).sum(-1) > 60
    rows, columns = np.mgrid[:96, :96] / 96
    seen = np.array([[columns[m].mean(), rows[m].mean(), np.sqrt(m.sum() / 2) / 96] for m in moved])
    np.testing.assert_allclose(seen, path_of(clip), atol=0.03)
    dx, dy, grown = (seen[-1] - seen[0]).tolist()
    steps = np.diff(seen[:, :2], axis=0)
    straight = np.hypot(dx, dy) > 0.8 * np.hypot(*steps.T).sum()
    (x, y), (vx, vy) = (seen[:-1, :2] - clip.center).T, steps.T
    turn = (x * vy - y * vx).mean()
    shown = {
        "moving left": straight and dx < -0.3,
        "moving right": straight and dx > 0.3,
        "moving up": straight and dy < -0.3,
        "moving down": straight and dy > 0.3,
        "circling clockwise": turn > 1e-3,  # y points down
        "circling counterclockwise": turn < -1e-3,
        "growing": grown > 0.05,
        "shrinking": grown < -0.05,
    }
    assert [name for name, holds in shown.items() if holds] == [motion]


def test_the_middle_frame_says_nothing_about_the_direction() -> None:
    def middle(motion: str) -> np.ndarray:
        clips = [draw_clip(0, "train", i, ("star", motion)) for i in range(400)]
        return np.array([pose(clip, (clip.start + clip.stop) / 2) for clip in clips])

    for motion in MOTIONS:
        np.testing.assert_allclose(middle(motion), middle(OPPOSITE[motion]), atol=1e-9)


def test_splits_share_no_seed_and_no_background() -> None:
    clips = {s: [draw_clip(0, s, i, PAIRS[0]) for i in range(300)] for s in ("train", "test", "unseen", "pretrain")}
    backgrounds = [clip.background for part in clips.values() for clip in part]
    assert len(set(backgrounds)) == len(backgrounds)
    looks = [(clip.center, clip.tint, clip.drift) for part in clips.values() for clip in part]
    assert len(set(looks)) == len(looks)
    pictures = [draw._background(clip, 0, 32).tobytes() for part in clips.values() for clip in part[:50]]
    assert len(set(pictures)) == len(pictures)


def test_files_lists_and_classes(shapes: Path) -> None:
    classes, unseen = read_classes(shapes / "classes.csv"), read_classes(shapes / "unseen_classes.csv")
    assert len(classes) == 36
    assert len(unseen) == 12
    assert not set(classes) & set(unseen)
    for name, names, count in (("train", classes, 72), ("test", classes, 36), ("unseen", unseen, 12)):
        videos, _ = read_list(shapes / f"{name}.txt", names)
        assert len(videos) == count
        assert np.bincount([video.label for video in videos]).tolist() == [count // len(names)] * len(names)
        assert decode_clip(videos[-1].path, [0.0, 0.9]).shape == (2, 48, 48, 3)


def test_same_seed_same_bytes_and_interrupted_generation_goes_on(shapes: Path, tmp_path: Path) -> None:
    config = MotionShapesConfig(train_per_class=2, test_per_class=1, frames=10, size=48)
    generate(tmp_path, config, workers=1)
    files = sorted(path.relative_to(shapes) for path in shapes.rglob("*.*") if path.is_file())
    assert [(tmp_path / file).read_bytes() for file in files] == [(shapes / file).read_bytes() for file in files]
    kept = (tmp_path / "train" / "00001.webm").stat().st_mtime_ns
    (tmp_path / "train" / "00000.webm").unlink()
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**manifest, "complete": False}))
    generate(tmp_path, config)
    assert (tmp_path / "train" / "00000.webm").read_bytes() == (shapes / "train" / "00000.webm").read_bytes()
    assert (tmp_path / "train" / "00001.webm").stat().st_mtime_ns == kept


def test_another_configuration_in_the_same_folder_is_refused(shapes: Path) -> None:
    with pytest.raises(ValueError, match="holds another dataset"):
        generate(shapes, MotionShapesConfig(seed=1))
    with pytest.raises(ValueError, match="frames must be >= 2"):
        MotionShapesConfig(frames=1)


def test_captions_name_the_object_and_never_a_motion() -> None:
    words = {word for motion in MOTIONS for word in motion.split()} - {"left", "right"}  # places as well
    for index in range(300):
        image, caption = captioned_frame(0, index, 48)
        assert image.shape == (48, 48, 3)
        assert OBJECTS[index % 6] in caption
        assert not words & set(caption.replace(":", "").split())
    assert len({captioned_frame(0, i, 48)[1] for i in range(300)}) > 60


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--out", str(tmp_path), "--train-per-class", "1", "--test-per-class", "1"]
    assert main([*command, "--frames", "2", "--size", "32"]) == 0
    assert len(read_list(tmp_path / "train.txt", read_classes(tmp_path / "classes.csv"))[0]) == 36
    assert main([*command, "--frames", "3"]) == 2
    assert "holds another dataset" in capsys.readouterr().err
