"""Naming the action in a video, or in many, from the command line."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from alt_fast import distributed
from alt_fast.classify import main
from alt_fast.corpus import Corpus
from alt_fast.data.pyav import one_thread
from alt_fast.distributed import World
from alt_fast.inference import predict
from alt_fast.inference.predict import load_video
from alt_fast.inference.trained import load
from alt_fast.model.clip_weights import build_clip
from tests.browser import data_of
from tests.conftest import NoiseWriter
from tests.processes import start, start_torchrun


@pytest.fixture
def video(trained_run: Path) -> Path:
    return trained_run.parent / "data" / "test" / "00003.webm"


def test_json_holds_every_label_and_the_entities_of_every_frame(
    trained_run: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(video), "--checkpoint", str(trained_run), "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["video"] == str(video)
    probabilities = [row["probability"] for row in answer["labels"]]
    assert len(probabilities) == 36
    assert sum(probabilities) == pytest.approx(1)
    assert probabilities == sorted(probabilities, reverse=True)
    assert len(answer["frames"]) == 2
    trained = load(trained_run)
    assert trained.model.corpus is not None
    units = {entity.unit: entity.category for entity in trained.model.corpus.entities}
    for frame in answer["frames"]:
        assert sum(row["share"] for row in frame) == pytest.approx(1)
        assert all(units[row["entity"]] == row["category"] for row in frame)


def test_answer_is_the_model_s(trained_run: Path, video: Path) -> None:
    trained = load(trained_run)
    classes = trained.embed(trained.classes)
    answer = trained.classify(video)
    with torch.no_grad():
        output = trained.model(load_video(video, trained.spec), classes)
    label, probability = answer[0]
    assert label == trained.classes[int(output.logits.argmax())]
    assert probability == pytest.approx(output.logits.softmax(-1).max().item(), rel=1e-4)
    assert len(answer) == len(answer[:]) == len(list(answer)) == 5


def test_table_of_an_h264_file_with_new_labels(
    trained_run: Path, write_noise: NoiseWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_noise("my holiday.mp4", "libx264")
    assert (
        main([str(path), "--checkpoint", str(trained_run), "--labels", "surfing", "eating", "a cat", "--top-k", "2"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(path)
    assert sum(line.strip().endswith(("surfing", "eating", "a cat")) for line in lines[1:3]) == 2
    assert lines[3].startswith("  frame 1: ")
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("name", "text"), [("labels.txt", "surfing\n\neating\n"), ("l.csv", "id,name\n0,surfing\n1,eating\n")]
)
def test_labels_from_a_file(
    trained_run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    assert main([str(video), "--checkpoint", str(trained_run), "--labels", str(tmp_path / name), "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert {row["label"] for row in answer["labels"]} == {"surfing", "eating"}


def test_labels_with_texts(trained_run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The texts are read, the labels are printed; by default of the classes trained on."""
    texts = {"surfing": "surfing: a person stands on a wave"}
    (tmp_path / "texts.csv").write_text("name,text\nsurfing,surfing: a person stands on a wave\n")
    command = [str(video), "--checkpoint", str(trained_run), "--texts", str(tmp_path / "texts.csv"), "--json"]
    labels = ["surfing", "eating"]
    assert main([*command, "--labels", *labels]) == 0
    found = [(row["label"], row["probability"]) for row in json.loads(capsys.readouterr().out)[0]["labels"]]
    trained = load(trained_run)
    assert dict(found).keys() == set(labels)
    assert found != list(trained.classify(video, labels))
    trained.use_texts(texts, labels)
    assert found == list(trained.classify(video, labels))
    assert main(command) == 1
    assert "texts.csv: class 'surfing' is not among the 36 classes" in capsys.readouterr().err


def test_clip_head_with_and_without_a_checkpoint(
    trained_run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(video), "--checkpoint", str(trained_run), "--head", "clip", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert len(answer["labels"]) == 36
    assert answer["frames"] == []
    weights = tmp_path / "clip.pt"
    torch.save(build_clip("tiny").state_dict(), weights)
    bare = ["--head", "clip", "--backbone", "tiny", "--pretrained", str(weights), "--r", "2"]
    assert main([str(video), *bare, "--labels", "a star", "a moon", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert len(answer["labels"]) == 2


def test_a_bad_file_does_not_keep_the_others_from_being_named(
    trained_run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "broken.mp4"
    bad.write_text("no video")
    assert main([str(bad), str(video), "--checkpoint", str(trained_run)]) == 1
    out, err = capsys.readouterr()
    assert str(video) in out
    assert f"error: {bad}: truncated, damaged or no video" in err
    assert main([str(bad), str(video), "--checkpoint", str(trained_run), "--json"]) == 1
    answers = json.loads(capsys.readouterr().out)
    assert "no video" in answers[0]["error"]
    assert "labels" in answers[1]


def test_bad_requests(video: Path, tmp_path: Path, trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests = {
        (str(video),): "--head alt needs --checkpoint RUN",
        (str(video), "--head", "clip"): "needs --labels",
        (str(video), "--checkpoint", str(tmp_path)): "not a run folder",
        (str(video), "--head", "clip", "--pretrained", "nonsense", "--labels", "x"): "neither a file nor a tag",
    }
    ours = (str(video), "--checkpoint", str(trained_run))
    requests |= {
        (*ours, "--top-k", "0"): "top_k must be an int >= 1, got 0",
        (*ours, "--backbone", "ViT-L-14"): "--backbone is for --head clip without a checkpoint",
        (*ours, "--pretrained", "openai"): "--pretrained is for --head clip without a checkpoint",
        (*ours, "--head", "clip", "--corpus", "motion_shapes"): "have no effect on --head clip",
        (*ours, "--labels", str(tmp_path / "none.txt")): "cannot read",
        (*ours, "--r", "-1"): "r must be >= 0",
    }
    for request, message in requests.items():
        files = ("not a run folder", "neither a file", "cannot read")
        assert main(list(request)) == (1 if message.startswith(files) else 2)
        assert message in capsys.readouterr().err


def test_r_changes_what_is_seen(trained_run: Path, video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for r in ([], ["--r", "0"], ["--r", "4"]):
        assert main([str(video), "--checkpoint", str(trained_run), "--json", *r]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[2] != answers[1]


def test_another_corpus(
    trained_run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], corpus: Corpus
) -> None:
    corpus.save(tmp_path / "five.json")
    command = [str(video), "--checkpoint", str(trained_run), "--json"]
    assert main([*command, "--corpus", str(tmp_path / "five.json"), "--categories", "object"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    units = {row["entity"] for frame in answer["frames"] for row in frame}
    assert units <= {"star", "moon"}
    assert main([*command, "--categories", "body"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert {row["category"] for frame in answer["frames"] for row in frame} == {"body"}
    bare = [str(video), "--head", "clip", "--backbone", "tiny", "--pretrained", str(tmp_path / "tiny.pt")]
    torch.save(build_clip("tiny", None).state_dict(), tmp_path / "tiny.pt")
    assert main([*bare, "--labels", "a", "b", "--categories", "motion"]) == 2
    assert "have no effect on --head clip" in capsys.readouterr().err


@pytest.fixture
def many(trained_run: Path, tmp_path: Path) -> list[str]:
    """The command for a folder of seven videos, one of which is broken."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(6):
        shutil.copy(trained_run.parent / "data" / "test" / f"{number:05}.webm", folder / f"{number}, 视频.webm")
    (folder / "3, broken.mp4").write_text("no video")
    return [str(folder), "--checkpoint", str(trained_run), "--batch-size", "2", "--workers", "0"]


def test_a_folder_becomes_a_table(
    many: list[str], trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, with the model's own answers, and the cause of what cannot be read."""
    out = tmp_path / "results.csv"
    (tmp_path / "clips" / "notes.md").touch()
    assert main([*many, "--out", str(out), "--top-k", "2"]) == 1
    printed = capsys.readouterr()
    assert f"7 videos in {out}, 1 of them with an error\n" in printed.out
    assert f"{tmp_path / 'clips'}: 7 videos; 1 passed over: 1 hidden or no videos\n" in printed.err
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted([*(f"{number}, 视频.webm" for number in range(6)), "3, broken.mp4"])
    assert [Path(row["video"]).name for row in rows] == names
    trained = load(trained_run)
    for row in rows:
        if "broken" in row["video"]:
            assert row["error"].startswith("truncated, damaged or no video")
            assert row["label"] == row["probability_2"] == ""
        else:
            (label, probability), second = trained.classify(row["video"], top_k=2)
            assert (row["error"], row["label"], row["label_2"]) == ("", label, second[0])
            assert float(row["probability"]) == pytest.approx(probability, rel=1e-4)


def test_lines_say_what_json_does(many: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For a glob that leaves the broken file out, so that the status is 0."""
    command = [f"{many[0]}/*.webm", *many[1:], "--labels", "a star", "a moon"]
    assert main([*command, "--out", str(tmp_path / "a.jsonl")]) == 0
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").open()] == json.loads(capsys.readouterr().out)
    labels = ["--labels", *(f"a {thing}" for thing in ("star", "moon", "heart", "cross", "ring", "drop", "cloud"))]
    for options, count in ((labels, 7), ([*labels, "--top-k", "2"], 2)):
        assert main([*command, *options, "--out", str(tmp_path / f"{count}.jsonl")]) == 0
        lines = (tmp_path / f"{count}.jsonl").read_text().splitlines()
        assert {len(json.loads(line)["labels"]) for line in lines} == {count}


def test_a_name_that_is_not_utf8_is_printed_all_the_same(
    trained_run: Path, write_noise: NoiseWriter, tmp_path: Path
) -> None:
    """Where the terminal's encoding is strict, as it is but in the C locale."""
    first = write_noise("a.mp4", "libx264", frames=10)
    for name in (b"b\xff.mp4", b"c.mp4"):
        os.link(first, os.fsencode(tmp_path) + b"/" + name)
    command = [sys.executable, "-m", "alt_fast.classify", str(tmp_path), "--checkpoint", str(trained_run)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([*command, "--workers", "0"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = [line.rpartition("/")[2] for line in done.stdout.splitlines() if line.startswith("/")]
    assert names == ["a.mp4", r"b\udcff.mp4", "c.mp4"]


def test_a_list_of_training_is_taken(many: list[str], trained_run: Path, tmp_path: Path) -> None:
    data = trained_run.parent / "data"
    paths = [line.split()[0] for line in (data / "unseen.txt").read_text().splitlines()]
    assert main([str(data / "unseen.txt"), *many[1:], "--out", str(tmp_path / "a.csv"), "--top-k", "1"]) == 0
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        assert [row["video"] for row in csv.DictReader(file)] == [str(data / path) for path in paths]


def test_killed_it_goes_on_with_more_processes(
    many: list[str], trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the bytes of one go, and nobody else writes the file meanwhile."""
    command = [many[0], str(trained_run.parent / "data" / "test"), *many[1:], "--device", "cpu", "--batch-size", "1"]
    (tmp_path / "clips" / "notes.md").touch()
    with one_thread():
        assert main([*command, "--out", str(tmp_path / "one.jsonl")]) == 1
    out, part = tmp_path / "more.jsonl", tmp_path / "more.jsonl.partial" / "00000.jsonl"
    with start("alt_fast.classify", *command, "--out", str(out)) as first:
        first.wait_until(lambda: part.exists() and part.read_bytes().count(b"\n") > 2)
        first.kill(signal.SIGSTOP)  # or it is done before the second one looks
        capsys.readouterr()
        assert main([*command, "--out", str(out)]) == 1
        assert f"more.jsonl.partial is being written by process {first.pid} on " in capsys.readouterr().err
        first.kill()
        assert first.wait() == -9
    assert not out.exists()
    assert part.read_bytes().count(b"\n") < 43
    with start_torchrun("alt_fast.classify", *command, "--out", str(out)) as both:
        assert both.wait() == 1
        assert both.output.count("43 videos in ") == 1
        assert both.errors.count("7 videos; 1 passed over") == 1
    assert out.read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_interrupted_it_goes_on_with_the_same_settings(
    many: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    predict_batches, asked = predict.predict_batches, []

    def interrupted(*arguments: Any) -> Any:
        asked.append(arguments[-1])
        for place, found in enumerate(predict_batches(*arguments)):
            if place == 1 and len(asked) == 1:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(predict, "predict_batches", interrupted)
    command = [*many, "--out", str(tmp_path / "a.csv")]
    assert main(command) == 130
    assert "with --out, the same command goes on" in capsys.readouterr().err
    for options, changed in (
        (["--r", "0"], "r was [4, 4, 4, 4], now [0, 0, 0, 0]"),
        (["--top-k", "3"], "top_k was 5, now 3"),
        (["--batch-size", "3"], "batch_size was 2, now 3"),
        (["--loader", "torch"], "loader was 'auto', now 'torch'"),
        (["--labels", "a", "b"], "labels was '36 ("),
        (["--corpus", "motion_shapes", "--categories", "motion"], "model was "),
    ):
        assert main([*command, *options]) == 1
        error = capsys.readouterr().err
        assert "a.csv.partial was begun otherwise: " in error
        assert changed in error
    assert main([f"{many[0]}/*.webm", *command[1:]]) == 1
    assert "videos was '7 (" in capsys.readouterr().err
    assert main(command) == 1  # one is broken
    assert asked == [[range(2), range(2, 4), range(4, 6), range(6, 7)], [range(2, 4), range(4, 6), range(6, 7)]]
    capsys.readouterr()
    assert main(command) == 1
    assert "a.csv is there already: remove it, or choose another --out" in capsys.readouterr().err


def test_files_that_cannot_be_meant(
    many: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for command, message in (
        ([*many, "--out", "a.txt"], "--out must end in .csv or .jsonl, got a.txt"),
        ([*many, "--out", "a.csv", "--json"], "--json has no effect on --out"),
        ([*many, "--root", "x"], "root x has no effect without a list"),
        ([str(tmp_path / "empty"), *many[1:]], "holds no videos"),
        ([*many, "--batch-size", "0"], "batch_size must be >= 1, got 0"),
        ([*many, "--timeout", "0"], "timeout > 0"),
    ):
        assert main(command) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(distributed, "join_world", lambda device: nullcontext(World(1, 2)))
    assert main(many) == 2
    assert "several processes share the work on a file: name it with --out" in capsys.readouterr().err


# What happens when in a long video.


def test_segments_of_a_long_video_in_every_form(
    trained_run: Path, write_noise: NoiseWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = str(write_noise("long.mkv", "libx264", frames=40))
    asked = [video, "--checkpoint", str(trained_run), "--labels", "surfing", "eating"]
    asked += ["--every", "500ms", "--window", "1s", "--enter", "0.1", "--leave", "0.1"]
    page = tmp_path / "page.html"
    assert main([*asked, "--out", str(page)]) == 0
    printed = capsys.readouterr()
    assert sorted(line.split("%  ")[1] for line in printed.out.splitlines()) == ["eating", "surfing"]
    assert all(line.startswith("00:00:00.000  00:00:04.000  ") for line in printed.out.splitlines())
    assert "2 segments of 7 windows; 8 frames encoded, for 14 in windows" in printed.err
    assert len(data_of(page)["steps"]) == 7
    assert main([*asked, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {segment["label"] for segment in answer["segments"]} == {"surfing", "eating"}
    assert (answer["duration"], answer["gaps"]) == (4.0, [])


def test_segments_are_told_of_the_end_too(
    trained_run: Path, write_noise: NoiseWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 4 s, by windows of 1 s every 2 s: one more ends with the video."""
    page, video = tmp_path / "page.html", str(write_noise("long.mkv", "libx264", frames=40))
    asked = [video, "--checkpoint", str(trained_run), "--every", "2s", "--window", "1s", "--out", str(page)]
    assert main(asked) == 0
    assert "segments of 3 windows; 6 frames encoded, for 6 in windows" in capsys.readouterr().err
    assert [step["time"] for step in data_of(page)["steps"]] == [0.0, 1.5, 3.0]


def test_where_segments_go_is_looked_at_before_the_work(
    trained_run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [str(video), "--checkpoint", str(tmp_path / "not looked at"), "--every", "1s", "--out"]
    (tmp_path / "there.srt").write_text("mine")
    (tmp_path / "folder.csv").mkdir()
    for out, message in (
        (tmp_path / "there.srt", "there.srt is there already: remove it, or choose another --out"),
        (tmp_path / "folder.csv", "folder.csv is there already"),
        (tmp_path / "there.srt" / "a.csv", "cannot make folder"),
        (Path("/proc/1/a.csv"), "cannot write /proc/1/a.csv: "),
    ):
        assert main([*asked, str(out)]) == 1
        assert message in capsys.readouterr().err
    assert (tmp_path / "there.srt").read_text() == "mine"
    monkeypatch.setattr(distributed, "join_world", lambda device: nullcontext(World(1, 2)))
    assert main([*asked, str(tmp_path / "a.csv")]) == 2
    assert "--every is for one process, and torchrun started 2: leave torchrun out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window", "4s"], "--window is for long videos: it needs --every TIME"),
        (["--min-length", "1s"], "--min-length is for long videos: it needs --every TIME"),
        (["--every", "1s", "--top-k", "2"], "--every is for one video, and takes no --top-k, --root, --batch-size or"),
        (["--every", "1s", "--batch-size", "2"], "--every is for one video, and takes no --top-k, --root, --batch"),
        (["--every", "1s", "--root", "clips"], "--every is for one video, and takes no --top-k, --root"),
        (["--every", "1s", "--out", "segments.txt"], "must end in .csv, .jsonl, .srt, .html, got segments.txt"),
        (["--every", "1s", "--leave", "0.6"], "0 < leave <= enter <= 1, got 0.6 and 0.5"),
        (["--every", "1s", "--window", "100ms"], "have 1 frames, and the model takes 2: ask for a longer window"),
    ],
)
def test_what_cannot_be_asked_of_a_long_video(
    trained_run: Path, video: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(video), "--checkpoint", str(trained_run), *options]) == 2
    assert message in capsys.readouterr().err
