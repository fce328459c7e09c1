"""The generated dataset keeps its promises."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alt_fast.corpus import Corpus
from alt_fast.data.__main__ import main
from alt_fast.data.annotations import read_classes, read_list
from alt_fast.data.augment import cut, view_record
from alt_fast.data.config import AugmentConfig, MotionShapesConfig
from alt_fast.data.decode import decode_clip
from alt_fast.data.motion_shapes import LEVELS, Level, level2, level3
from alt_fast.data.motion_shapes.drawing import MOTIONS, OPPOSITE, WORDINGS, Thing, owners, place_name, with_article
from alt_fast.data.motion_shapes.generate import generate
from alt_fast.data.motion_shapes.level1 import (
    OBJECTS,
    TRAINED,
    UNSEEN,
    Clip,
    background_of,
    captioned_frame,
    draw_clip,
    pose,
    render,
)
from alt_fast.data.motion_shapes.truth import read_dataset, things_in
from alt_fast.data.rng import Stream, generator
from alt_fast.errors import ArgumentError

TIMES = np.linspace(0, 1, 21).tolist()


def path_of(clip: Clip) -> np.ndarray:
    return np.array([pose(clip, time) for time in TIMES])


def test_pairs_cover_everything_and_never_overlap() -> None:
    assert not set(TRAINED) & set(UNSEEN)
    assert set(TRAINED) | set(UNSEEN) == {(o, m) for o in OBJECTS for m in MOTIONS}
    assert {o for o, _ in UNSEEN} == {o for o, _ in TRAINED} == set(OBJECTS)
    assert {m for _, m in UNSEEN} == {m for _, m in TRAINED} == set(MOTIONS)


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
    clips = {s: [draw_clip(0, s, i, TRAINED[0]) for i in range(300)] for s in ("train", "test", "unseen", "pretrain")}
    backgrounds = [clip.background for part in clips.values() for clip in part]
    assert len(set(backgrounds)) == len(backgrounds)
    looks = [(clip.center, clip.tint, clip.drift) for part in clips.values() for clip in part]
    assert len(set(looks)) == len(looks)
    pictures = [background_of(clip, 0, 32).tobytes() for part in clips.values() for clip in part[:50]]
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


@pytest.mark.parametrize("name", ["train.txt", "unseen", "classes.csv"])
def test_a_folder_of_somebody_else_s_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir() if name == "unseen" else (tmp_path / name).write_text("mine")
    with pytest.raises(ArgumentError, match=f"holds {name}, and no generated dataset that it is of"):
        generate(tmp_path, MotionShapesConfig())
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_captions_name_the_object_and_never_a_motion() -> None:
    words = {word for motion in MOTIONS for word in motion.split()} - {"left", "right"}  # places as well
    for index in range(300):
        image, caption, *_ = captioned_frame(0, index, 48)
        assert image.shape == (48, 48, 3)
        assert OBJECTS[index % 6] in caption
        assert not words & set(caption.replace(":", "").split())
    assert len({captioned_frame(0, i, 48).caption for i in range(300)}) > 60


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--out", str(tmp_path), "--train-per-class", "1", "--test-per-class", "1"]
    assert main([*command, "--frames", "2", "--size", "32"]) == 0
    assert len(read_list(tmp_path / "train.txt", read_classes(tmp_path / "classes.csv"))[0]) == 36
    assert main([*command, "--frames", "3"]) == 2
    assert "holds another dataset" in capsys.readouterr().err


def test_level_2_unseen_tools_are_in_no_training_video() -> None:
    """Neither carried nor lying about, in any split but `unseen` and the pretraining's."""
    trained_tools, unseen_tools = ({tool for _, _, tool in classes} for classes in (level2.TRAINED, level2.UNSEEN))
    assert len(level2.TRAINED) == len(level2.UNSEEN) == 40
    assert not trained_tools & unseen_tools
    for split, classes in (("train", level2.TRAINED), ("test", level2.TRAINED), ("unseen", level2.UNSEEN)):
        clips = [level2.draw_clip(0, split, index, cls) for index, cls in enumerate(classes)]
        lying = {lying.tool for clip in clips for lying in clip.lying}
        assert lying <= set(level2.LYING)
        assert not lying & (trained_tools | unseen_tools)
    assert {level2.captioned_frame(0, i, 32).about[0] for i in range(60)} == set(level2.NAMES)


def test_level_3_only_the_tool_tells_the_classes_of_an_actors_motion_apart() -> None:
    """Five tools each; actor alone, or motion alone, says nothing of the tool. All else is level 2's."""
    assert len(set(level3.TRAINED)) == 160
    pairs = Counter(triple[:2] for triple in level3.TRAINED)
    assert set(pairs) == {triple[:2] for triple in level2.TRAINED}
    assert set(pairs.values()) == {5}
    assert [tool for _, _, tool in level3.TRAINED[::8]] == list(level2.CARRIED)  # the eight of a tool are neighbours
    for part in (0, 1):
        assert set(Counter((triple[part], triple[2]) for triple in level3.TRAINED).values()) == {2 - part}
    for (actor, motion, tool), other in zip(level3.TRAINED[::2], level3.TRAINED[1::2], strict=True):
        assert other == (actor, OPPOSITE[motion], tool)
    shared = set(level3.__all__) - {"TRAINED"}
    assert all(getattr(level3, name) is getattr(level2, name) for name in shared)


def test_level_2_the_classes_of_a_tool_differ_in_nothing_but_the_direction() -> None:
    for classes in (level2.TRAINED, level2.UNSEEN):
        assert len({level2.label_of(cls) for cls in classes}) == 40
        for (actor, motion, tool), other in zip(classes[::2], classes[1::2], strict=True):
            assert other == (actor, OPPOSITE[motion], tool)
    assert len({(look.shape, look.fill, look.color) for look in level2.LOOKS.values()}) == 60


@pytest.mark.parametrize("motion", MOTIONS)
def test_level_2_played_backwards_a_clip_shows_the_opposite_motion(motion: str) -> None:
    clip = replace(level2.draw_clip(0, "train", 5, ("cat", motion, "kettle")), start=0.1, stop=0.9)
    opposite = replace(clip, motion=OPPOSITE[motion])
    for time in TIMES:
        for (_, there), (_, back) in zip(level2._moving(clip, time), level2._moving(opposite, 1 - time), strict=True):
            np.testing.assert_allclose(there, back, atol=1e-9)


def test_level_2_pretraining_never_reads_the_label_of_an_unseen_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither as a caption nor as one of two sentences that say the same, or zero-shot would be none.

    Of unseen tools only, whose captions can be one: without the rule one in 64 would be.
    """
    monkeypatch.setattr(level2, "render", lambda clip, seed, times, size: np.zeros((1, size, size, 3), np.uint8))
    unseen = {level2.label_of(triple) for triple in level2.UNSEEN}
    first = level2.NAMES.index(level2.CARRIED_UNSEEN[0])
    numbers = [60 * i + tool for i in range(50) for tool in range(first, first + len(level2.CARRIED_UNSEEN))]
    captions = [level2.captioned_frame(0, number, 8).caption for number in numbers]
    said = [caption for caption in captions if any(motion in caption for motion in MOTIONS)]
    assert len(said) > 150
    assert not unseen & set(captions)
    reworded = {
        f"{with_article(actor)} {WORDINGS[motion]} holding {with_article(tool)}"
        for actor, motion, tool in level2.UNSEEN
    }
    for number in range(60):
        labels, rewordings = level2.reworded_labels(generator(0, Stream.CAPTION, 2, number))
        assert len(labels) == len(set(labels)) == len(rewordings) == 48
        assert not unseen & set(labels)
        assert not reworded & set(rewordings)


def test_level_1_pretraining_reads_trained_labels_only() -> None:
    labels, rewordings = LEVELS[1].reworded_labels(generator(0, Stream.CAPTION, 2, 0))
    assert labels == [LEVELS[1].label_of(pair) for pair in TRAINED]
    assert not {LEVELS[1].label_of(pair) for pair in UNSEEN} & {*labels, *rewordings}
    assert not {f"a {name} {WORDINGS[motion]}" for name, motion in UNSEEN} & set(rewordings)


def test_level_2_layouts_tell_where_the_actor_is_and_how_large() -> None:
    areas: dict[str, list[float]] = {name: [] for name in level2.EXTENTS}
    checked = 0
    for index in range(150):
        found = level2.captioned_frame(0, index, 48)
        (mask,) = [thing.mask for thing in found.things if "body" in thing.names]
        actor = next(iter(level2.ACTORS.keys() & set(found.about)))
        place, extent = found.layout
        assert [found.layout[i] in group for group in level2.LAYOUTS for i in (0, 1)].count(True) == 2
        areas[extent.split()[1]].append(float(mask.sum()))
        assert extent.endswith(f" {actor}")
        if mask[[0, -1]].any() or mask[:, [0, -1]].any():
            continue  # cut off: its middle is elsewhere
        y, x = ((np.indices(mask.shape) + 0.5) * mask).sum((1, 2)) / mask.sum() / len(mask)
        if min(abs(x - 0.4), abs(x - 0.6), abs(y - 0.4), abs(y - 0.6)) > 0.06:  # a moon's middle is beside it
            assert place == f"a {actor} at the {place_name(x, y)}"
            checked += 1
    assert checked > 40
    sizes = [np.median(area) for area in areas.values()]
    assert sizes == sorted(sizes)


def test_level_2_corpus_is_what_is_drawn() -> None:
    corpus = Corpus.load(level2.CORPUS)
    told = {entity.unit: entity.description for entity in corpus.entities if entity.category in ("object", "body")}
    looks = {name: look.text for name, look in level2.LOOKS.items()}
    assert told == looks | {name: f"a white {shape} with eyes" for name, shape in level2.ACTORS.items()}
    assert {e.unit for e in corpus.entities if e.category == "motion"} == set(MOTIONS)


@pytest.mark.parametrize("level", [LEVELS[1], LEVELS[2]], ids=["level 1", "level 2"])  # level 3 draws as level 2
def test_things_are_where_they_are_drawn(level: Level) -> None:
    """Without them the frame is another one there, and nowhere else; and the corpus knows all that is true of them."""
    units = {entity.unit for entity in Corpus.load(level.CORPUS).entities}
    for index in range(0, len(level.TRAINED), 7):
        clip = level.draw_clip(0, "train", index, level.TRAINED[index])
        things = level.things(clip, 0.5, 64)
        assert {name for thing in things for names in thing.names.values() for name in names} <= units
        np.testing.assert_allclose(sum(thing.mask for thing in things), 1, atol=1e-5)
        empty = (
            replace(clip, radius=1e-6)
            if level is LEVELS[1]
            else replace(clip, actor_radius=1e-6, tool_radius=1e-6, lying=())
        )
        drawn, without = (level.render(c, 0, [0.5], 64)[0].astype(float) for c in (clip, empty))
        differs = np.abs(drawn - without).sum(-1) > 60
        covered = things[0].mask < 0.5
        assert (differs & ~covered).mean() < 0.02
        assert (differs & covered).sum() > 0.5 * covered.sum()


def test_what_is_true_is_found_by_the_video(shapes: Path) -> None:
    """The masks of a decoded clip are where its pixels are bright."""
    videos, _ = read_list(shapes / "test.txt", read_classes(shapes / "classes.csv"))
    assert read_dataset(videos[3].path) == MotionShapesConfig(train_per_class=2, test_per_class=1, frames=10, size=48)
    record = view_record(AugmentConfig(test_crop=1.0), 4)
    frames = cut(record, decode_clip(videos[3].path, record.positions), (48, 48)).float().mean(1).numpy()
    shown_things = things_in(videos[3].path, record, (48, 48))
    assert shown_things is not None
    for frame, things in zip(frames, shown_things, strict=True):
        shown = things[-1].mask
        assert frame[shown > 0.9].mean() > frame[shown < 0.1].mean() + 60
    assert read_dataset(shapes / "elsewhere" / "x" / "y.webm") is None


def test_level_2_the_middle_frame_says_nothing_about_the_direction() -> None:
    for actor, motion, tool in level2.TRAINED[::2]:
        clips = [level2.draw_clip(0, "train", i, (actor, motion, tool)) for i in range(20)]
        for clip in clips:
            middle = (clip.start + clip.stop) / 2
            places, back = (level2._moving(replace(clip, motion=m), middle) for m in (motion, OPPOSITE[motion]))
            for (_, here), (_, there) in zip(places, back, strict=True):
                np.testing.assert_allclose(here, there, atol=1e-9)


def test_owners_of_patches_that_do_not_fill_the_frame() -> None:
    """What is left over at the right and below is no patch."""
    mask = np.zeros((50, 50), np.float32)
    mask[:8, :8], mask[48:, 48:] = 1, 1
    things = [Thing({}, 1 - mask), Thing({}, mask)]
    assert owners(things, (8, 8)).shape == (6, 6)
    assert np.argwhere(owners(things, (8, 8)) == 1).tolist() == [[0, 0]]
