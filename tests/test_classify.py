"""Naming the action in a video from the command line."""

import json
from pathlib import Path

import pytest
import torch

from alt_fast.classify import main
from alt_fast.corpus import Corpus
from alt_fast.inference.predict import load_video
from alt_fast.inference.trained import load
from alt_fast.model.clip_weights import build_clip
from tests.browser import data_of
from tests.conftest import NoiseWriter, VideoWriter


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
    trained_run: Path, write_video: VideoWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_video("my holiday.mp4")
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
        (*ours, "--top-k", "0"): "top_k must be >= 1, got 0",
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window", "4s"], "--window is for long videos: it needs --every TIME"),
        (["--min-length", "1s"], "--min-length is for long videos: it needs --every TIME"),
        (["--every", "1s", "--top-k", "2"], "--every is for one video, and takes no --top-k"),
        (["--every", "1s", "--out", "segments.txt"], "must end in .csv, .jsonl, .srt, .html, got segments.txt"),
        (["--every", "1s", "--leave", "0.6"], "0 < leave <= enter <= 1, got 0.6 and 0.5"),
        (["--every", "0s"], "every must be > 0 seconds, got 0.0"),
        (["--every", "1s", "--window", "100ms"], "have 1 frames, and the model takes 2: ask for a longer window"),
    ],
)
def test_what_cannot_be_asked_of_a_long_video(
    trained_run: Path, video: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(video), "--checkpoint", str(trained_run), *options]) == 2
    assert message in capsys.readouterr().err
