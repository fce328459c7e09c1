"""Few-shot draws and zero-shot scores over splits."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alt_fast.cli import SAME_TOWER
from alt_fast.data.annotations import Video, name_key, read_classes, read_list, read_names, spoken
from alt_fast.data.config import Loading
from alt_fast.data.texts import write_texts
from alt_fast.errors import RunError
from alt_fast.inference.scoring import EvalConfig, Result
from alt_fast.inference.trained import load, save_model
from alt_fast.inference.zero_shot import score_zero_shot
from alt_fast.paper.config import ProbeConfig
from alt_fast.paper.probe import train_probe
from alt_fast.paper.splits import RENAMED, draw_shots, unseen_classes, write_shots
from alt_fast.protocols import main, report


def test_draws_are_seeded_nested_and_of_every_class() -> None:
    videos = [Video(Path(f"{i}.mp4"), i % 3) for i in range(60)]
    four = draw_shots(videos, list("abc"), 4, seed=0)
    assert [video.label for video in four] == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(four)) == 12
    assert set(draw_shots(videos, list("abc"), 2, seed=0)) < set(four)
    assert draw_shots(videos, list("abc"), 4, seed=0) == four
    assert draw_shots(videos, list("abc"), 4, seed=1) != four
    with pytest.raises(RunError, match="class 'd' has 0 videos, 1 shots"):
        draw_shots(videos, list("abcd"), 1, seed=0)


def test_few_shot_lists_train(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["few-shot", "--list", str(shapes / "train.txt"), "--classes", str(shapes / "classes.csv")]
    assert main([*command, "--shots", "1", "2", "--out", str(tmp_path)]) == 0
    assert "1-shot-seed0.csv: 36 videos of 36 classes" in capsys.readouterr().out
    assert main([*command, "--root", "/nowhere", "--shots", "1", "--out", str(tmp_path / "gone")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"36 videos of 36 classes, 36 of which are not there, as /nowhere/.*: is --root right\?", said)
    names = read_classes(shapes / "classes.csv")
    videos, _ = read_list(tmp_path / "1-shot-seed0.csv", names)
    assert [video.label for video in videos] == list(range(36))
    everything, _ = read_list(shapes / "train.txt", names)
    assert {video.path for video in videos} <= {video.path.absolute() for video in everything}
    assert main([*command, "--shots", "3", "--out", str(tmp_path)]) == 1
    assert "has 2 videos, 3 shots were asked for" in capsys.readouterr().err
    assert main([*command, "--shots", "0", "--out", str(tmp_path)]) == 2
    assert "--shots must be >= 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["few-shot", "--shots", "1"], ["unseen", "--seen", "kinetics400", "--count", "2"]])
def test_draws_replace_no_others(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """The same ones they do."""
    command = [*command, "--classes", str(shapes / "classes.csv"), "--out", str(tmp_path)]
    for _ in range(2):
        assert main([*command, "--list", str(shapes / "train.txt")]) == 0
    (drawn,) = tmp_path.iterdir()
    before = drawn.read_text()
    assert main([*command, "--list", str(shapes / "test.txt")]) == 1
    assert f"there is another {drawn}: remove it, or choose another folder" in capsys.readouterr().err
    assert drawn.read_text() == before


def test_draws_of_one_s_own_are_replaced(shapes: Path, tmp_path: Path) -> None:
    """As those of ablations, where their folder was moved."""
    (tmp_path / "1-shot-seed0.csv").write_text("path,label\n/elsewhere/a.webm,a star growing\n")
    write_shots(shapes / "train.txt", shapes / "classes.csv", None, [1], 0, tmp_path, replace=True)
    assert "elsewhere" not in (tmp_path / "1-shot-seed0.csv").read_text()


def test_zero_shot_scores_of_splits(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = trained_run.parent / "data"
    lines = (data / "unseen.txt").read_text().splitlines()
    lists = []
    for number, split in enumerate((lines[:6], lines[4:])):
        lists.append(str(tmp_path / f"split{number}.txt"))
        Path(lists[-1]).write_text("".join(f"{line}\n" for line in split))
    command = ["zero-shot", "--checkpoint", str(trained_run), "--root", str(data), "--workers", "0"]
    unseen = ["--list", *lists, "--classes", str(data / "unseen_classes.csv")]
    assert main([*command, *unseen, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    first, second = (row["top1"] for row in answer["lists"])
    assert answer["top1"]["mean"] == pytest.approx((first + second) / 2)
    assert answer["top1"]["deviation"] == pytest.approx(abs(first - second) / 2**0.5)
    assert all(row["shared"] == [] and row["unseen"]["top1"] == row["top1"] for row in answer["lists"])
    assert "unseen" not in answer
    assert main([*command, *unseen]) == 0
    printed = capsys.readouterr().out
    assert "top1: " in printed
    assert "trained on" not in printed


def test_splits_of_nothing_but_classes_trained_on_are_called_so(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And cost none of the scores of the others."""
    data = trained_run.parent / "data"
    seen, unseen = read_classes(data / "classes.csv"), read_classes(data / "unseen_classes.csv")
    for name, videos in (("mine", ("test/00003.webm", "unseen/00000.webm")), ("seen", ("test/00003.webm",))):
        labels = (seen[3], unseen[0])
        rows = [f"{video},{label}" for video, label in zip(videos, labels, strict=False)]
        (tmp_path / f"{name}.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    command = ["zero-shot", "--checkpoint", str(trained_run), "--root", str(data), "--workers", "0"]
    command += ["--list", str(tmp_path / "mine.csv"), str(tmp_path / "seen.csv")]
    assert main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    first, second = answer["lists"]
    assert first["unseen"]["videos"] == 1
    assert "unseen" not in second
    assert (second["videos"], second["top1"], second["shared"]) == (1, 1.0, [seen[3]])
    assert answer["top1"]["mean"] == (first["top1"] + second["top1"]) / 2
    assert answer["unseen"]["top1"] == {"mean": first["unseen"]["top1"], "deviation": None}
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"  trained on: {seen[3]}\n{tmp_path / 'seen.csv'}: top-1 100.0%, " in printed
    assert "  every video is of a class that was trained on: nothing in it is zero-shot\n" in printed
    monkeypatch.setattr("alt_fast.inference.trained.evaluate", None)  # nothing is tested
    assert main([*command, "--only-unseen"]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / 'seen.csv'}: every video is of a class that is trained on, so nothing in it is" in error


def test_zero_shot_between_clip_s_tower_and_the_trained_one(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = trained_run.parent / "data"
    command = ["zero-shot", "--checkpoint", str(trained_run), "--root", str(data), "--workers", "0"]
    command += ["--list", str(data / "unseen.txt"), "--classes", str(data / "unseen_classes.csv")]
    assert main([*command, "--interpolate", "1", "0", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (own,) = answer["lists"]
    same, clip = answer["interpolated"]
    assert same["top1"] == answer["top1"]
    assert (same["lists"][0]["interpolate"], clip["lists"][0]["interpolate"]) == (1, 0)
    trained = load(trained_run)
    assert trained.interpolate(str(trained_run / "clip.safetensors"), 0)
    tested = read_list(data / "unseen.txt", data / "unseen_classes.csv", data, "test")
    again = score_zero_shot(trained, own["list"], *tested, EvalConfig(loading=Loading(workers=0)))
    assert clip["lists"] == [again | {"interpolate": 0, "same_tower": False}]
    assert main([*command, "--interpolate", "0.5", "--tower", str(trained_run / "model.safetensors")]) == 1
    assert "model.safetensors" in capsys.readouterr().err
    (row,) = answer["lists"]
    told = {"interpolate": 0.5, "same_tower": True}
    report([row, row | told], as_json=False)
    printed = capsys.readouterr().out
    assert f"\ninterpolated 0.5:\n{row['list']}: top-1 " in printed
    assert printed.endswith(f"interpolated: {SAME_TOWER}\n")
    assert main([*command, "--interpolate", "1.5"]) == 2
    assert "--interpolate must be in [0, 1], got 1.5" in capsys.readouterr().err


def test_zero_shot_with_texts(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, seen = trained_run.parent / "data", []

    def evaluate(model: object, videos: list[Video], spec: object, classes: Tensor, *_: object, **__: object) -> Result:
        seen.append(classes)
        labels = torch.tensor([video.label for video in videos])
        return Result(torch.ones(len(videos), len(classes)), labels, [], labels >= 0, Counter())

    monkeypatch.setattr("alt_fast.inference.trained.evaluate", evaluate)
    names = read_classes(data / "unseen_classes.csv")
    write_texts(tmp_path / "texts.csv", {name: f"{name}: a shape in motion" for name in names})
    command = ["zero-shot", "--checkpoint", str(trained_run), "--list", str(data / "unseen.txt")]
    command += ["--classes", str(data / "unseen_classes.csv"), "--texts", str(tmp_path / "texts.csv")]
    assert main(command) == 0
    trained = load(trained_run)
    trained.use_texts(tmp_path / "texts.csv", names)
    assert torch.equal(seen[0], trained.embed(names))
    (tmp_path / "first.txt").write_text("\n".join(names[:5]) + "\n")
    assert main([*command, "--names", str(tmp_path / "first.txt")]) == 1
    assert f"class {names[5]!r} is not among the 5 classes" in capsys.readouterr().err


UCF101 = ["Archery", "BrushingTeeth", "CleanAndJerk", "PlayingGuitar", "Shotput", "TaiChi"]
"""Classes of UCF-101 that Kinetics-400 has, too; it has 16 more."""

UCF101_ONLY = ["ApplyEyeMakeup", "BabyCrawling", "HorseRace"]
"""Classes of UCF-101 that are none of Kinetics-400 by name."""

HMDB51, HMDB51_ONLY = ["pushup", "situp"], ["brush_hair", "cartwheel", "shake_hands"]
"""The two classes of HMDB-51 that Kinetics-400 has, too, and others."""


@pytest.fixture
def kinetics_run(trained_run: Path, tmp_path: Path) -> Path:
    """The small run with 36 class names of Kinetics-400 in the place of its own: what has them trained on."""
    shared = {name_key(name) for name in (*UCF101, *HMDB51)}
    names = sorted(read_names("kinetics400"), key=lambda name: name_key(name) not in shared)
    trained = load(trained_run)
    save_model(tmp_path / "model.safetensors", replace(trained, classes=names[:36]))
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("seen", "unseen", "form"),
    [(UCF101, UCF101_ONLY, "testlist01.txt"), (HMDB51, HMDB51_ONLY, "*_test_split1.txt")],
    ids=["UCF-101", "HMDB-51"],
)
def test_label_sets_that_overlap_are_tested_on_all_classes(
    kinetics_run: Path,
    trained_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    seen: list[str],
    unseen: list[str],
    form: str,
) -> None:
    """The published lists of other datasets, on a model of Kinetics-400: the paper's Table 3."""
    root = tmp_path / "videos"
    sources = sorted((trained_run.parent / "data" / "test").glob("*.webm"))
    for name, video in zip([*seen, *unseen], sources, strict=False):
        (root / name).mkdir(parents=True)
        (root / name / "v.avi").symlink_to(video)
        if form.startswith("*"):
            (tmp_path / form.replace("*", name)).write_text("v.avi 2\n")
    if not form.startswith("*"):
        (tmp_path / form).write_text("".join(f"{name}/v.avi\n" for name in [*seen, *unseen]))
    command = ["zero-shot", "--checkpoint", str(kinetics_run), "--root", str(root), "--workers", "0"]
    command += ["--list", str(tmp_path / form)]
    assert main([*command, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["lists"]
    assert (row["videos"], row["classes"]) == (len(seen) + len(unseen),) * 2
    assert sorted(row["shared"]) == sorted(map(spoken, seen))
    assert (row["unseen"]["videos"], row["unseen"]["classes"]) == (3, 3)
    assert row["unseen"]["chance"] == 1 / 3
    assert main([*command, "--json", "--only-unseen"]) == 0
    (alone,) = json.loads(capsys.readouterr().out)["lists"]
    assert (alone["videos"], alone["classes"], alone["shared"]) == (3, 3, row["shared"])
    assert alone["top1"] == row["unseen"]["top1"] == alone["unseen"]["top1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"of {row['videos']} videos of {row['classes']} classes" in printed
    assert f"never trained on: top-1 {alone['top1']:.1%}, top-5 100.0% of 3 videos of 3 classes" in printed
    assert f"trained on: {', '.join(row['shared'])}" in printed
    assert f"top1: {row['top1']:.1%}; never trained on: {alone['top1']:.1%}\n" in printed
    assert main([*command, "--only-unseen"]) == 0
    assert f"trained on, left out: {', '.join(row['shared'])}\ntop1: {alone['top1']:.1%}\n" in capsys.readouterr().out


def test_files_of_names_choose_the_classes_of_splits(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the three splits of Kinetics-600 are published: of one list, the classes of each file."""
    data = trained_run.parent / "data"
    names = read_classes(data / "unseen_classes.csv")
    (tmp_path / "first.txt").write_text("\n".join(names[:5]) + "\n")
    (tmp_path / "second.csv").write_text("id,name\n" + "".join(f"{i},{n.title()}\n" for i, n in enumerate(names[4:7])))
    command = ["zero-shot", "--checkpoint", str(trained_run), "--root", str(data), "--workers", "0", "--json"]
    command += ["--list", str(data / "unseen.txt"), "--classes", str(data / "unseen_classes.csv")]
    (tmp_path / "cls2index.json").write_text(json.dumps({name: i for i, name in enumerate(names[7:9])}))
    files = [str(tmp_path / name) for name in ("first.txt", "second.csv", "cls2index.json")]
    assert main([*command, "--names", *files]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [(row["videos"], row["classes"]) for row in answer["lists"]] == [(5, 5), (3, 3), (2, 2)]
    assert [row["list"] for row in answer["lists"]] == [f"{data / 'unseen.txt'}, {file}" for file in files]
    assert answer["top1"]["deviation"] is not None
    (tmp_path / "first.txt").write_text("winking\n")
    assert main([*command, "--names", *files]) == 1
    assert "first.txt: class 'winking' is not among the 12 classes of the list" in capsys.readouterr().err


def test_unseen_classes_are_drawn_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Case and punctuation tell no classes apart; a new name does, until it is asked to be left out."""
    names = ["Abseiling", "bee-keeping", "dyeing hair", "base jumping", "luge", "winking"]
    rows = [f"{name},v{i}{k},0,10" for i, name in enumerate(names) for k in range(2)]
    (tmp_path / "val.csv").write_text("label,youtube_id,time_start,time_end\n" + "\n".join(rows) + "\n")
    command = ["unseen", "--list", str(tmp_path / "val.csv"), "--seen", "kinetics400", "--out", str(tmp_path)]
    assert main([*command, "--count", "2", "--seeds", "0", "1", "2"]) == 0
    printed = capsys.readouterr().out
    assert "3 of 6 classes are not in kinetics400 by name" not in printed
    assert "4 of 6 classes are not in kinetics400 by name" in printed
    assert "1 of them are there under another name, left out" in printed
    drawn = [read_list(tmp_path / f"unseen-seed{seed}.csv") for seed in (0, 1, 2)]
    assert all(len(videos) == 4 and len(classes) == 2 for videos, classes in drawn)
    assert len({tuple(classes) for _, classes in drawn}) > 1
    assert all(set(classes) < set(names[3:]) for _, classes in drawn)
    assert main([*command, "--count", "4", "--seeds", "3", "--keep-renamed"]) == 0
    assert read_list(tmp_path / "unseen-seed3.csv")[1] == ["base jumping", "dyeing hair", "luge", "winking"]
    assert main([*command, "--count", "4"]) == 1
    assert "has 3 unseen classes, 4 were asked for" in capsys.readouterr().err


def test_renamed_classes_are_known_to_kinetics_400() -> None:
    known = {name_key(name) for name in read_names("kinetics400")}
    assert all(name_key(old) in known and name_key(new) not in known for new, old in RENAMED.items())
    assert unseen_classes(["dyeing hair"], ["archery"], RENAMED) == ["dyeing hair"]  # not a new name of anything seen


def test_a_linear_layer_finds_separable_classes() -> None:
    centers = torch.randn(5, 16) * 4
    labels = torch.arange(5).repeat(40)
    vectors = centers[labels] + torch.randn(200, 16)
    layer = train_probe(vectors, labels, 5, ProbeConfig(lr=1e-2, batch_size=48))
    assert (layer(vectors).argmax(1) == labels).float().mean() > 0.97
    again = train_probe(vectors, labels, 5, ProbeConfig(lr=1e-2, batch_size=48))
    assert torch.equal(layer.weight, again.weight)
    other = train_probe(vectors, labels, 5, ProbeConfig(lr=1e-2, batch_size=48, seed=1))
    assert not torch.equal(layer.weight, other.weight)
    with pytest.raises(ValueError, match="epochs must be >= 1, got 0"):
        ProbeConfig(epochs=0)


def test_a_probe_reads_the_numbers_of_both_lists_alike(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From 1, as in classInd.txt: tested on what it was trained on, most are right."""
    data = trained_run.parent / "data"
    paths = [line.split()[0] for line in (data / "train.txt").read_text().splitlines()[:6]]
    (tmp_path / "both.txt").write_text("".join(f"{path} {1 + i % 3}\n" for i, path in enumerate(paths)))
    (tmp_path / "classInd.txt").write_text("1 a\n2 b\n3 c\n4 d\n")
    command = ["probe", "--checkpoint", str(trained_run), "--root", str(data), "--workers", "0", "--lr", "0.5"]
    command += ["--classes", str(tmp_path / "classInd.txt"), "--probe-batch-size", "16", "--epochs", "400", "--json"]
    both = ["--train", str(tmp_path / "both.txt"), "--list", str(tmp_path / "both.txt")]
    assert main([*command, *both]) == 0
    assert json.loads(capsys.readouterr().out)["lists"][0]["top1"] > 0.5
    assert main([*command, *both, "--lr", "inf"]) == 1
    assert "the probe's scores are not finite, with a learning rate of inf" in capsys.readouterr().err


def test_a_probe_of_splits(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unreadable videos are named: not trained on, and counted as wrong."""
    data = trained_run.parent / "data"
    lines = (data / "train.txt").read_text().splitlines()
    (tmp_path / "train.txt").write_text("\n".join([*lines[:6], "gone.webm 0"]) + "\n")
    (tmp_path / "test.txt").write_text("\n".join([*lines[:6], "none.webm 3"]) + "\n")
    command = ["probe", "--checkpoint", str(trained_run), "--root", str(data), "--workers", "0", "--lr", "0.5"]
    command += ["--classes", str(data / "classes.csv"), "--probe-batch-size", "16"]
    splits = ["--train", *[str(tmp_path / "train.txt")] * 2, "--list", *[str(tmp_path / "test.txt")] * 2]
    assert main([*command, *splits, "--json", "--epochs", "400"]) == 1
    out, errors = capsys.readouterr()
    answer = json.loads(out)
    assert [row["videos"] for row in answer["lists"]] == [7, 7]
    assert answer["top1"]["deviation"] == 0
    assert answer["top1"]["mean"] == pytest.approx(6 / 7)  # all that it was trained on
    assert [row["not_trained_on"][0]["cause"] for row in answer["lists"]] == ["no such file"] * 2
    assert "unreadable, not trained on: " in errors
    assert "unreadable, counted as wrong: " in errors
    (tmp_path / "train.txt").write_text("gone.webm 0\n")
    assert main([*command, "--train", str(tmp_path / "train.txt"), "--list", str(tmp_path / "test.txt")]) == 1
    out, errors = capsys.readouterr()
    assert not out
    assert "train.txt: none of its videos can be read (no such file)" in errors
    assert main([*command, *splits[:-1]]) == 2
    assert "--train names 2 lists and --list 1: one each a split" in capsys.readouterr().err
