"""EvalConfig a trained model: counts, lists, and the command line."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from alt_fast import cli
from alt_fast.corpus import Corpus
from alt_fast.data.annotations import Video, read_classes, read_list
from alt_fast.data.config import Loading
from alt_fast.data.dataset import EvalClips
from alt_fast.data.tables import AnnotationError
from alt_fast.data.texts import write_texts
from alt_fast.errors import RunError
from alt_fast.evaluate import main, make_parser
from alt_fast.files import write_csv
from alt_fast.inference.lists import run_lists, starting_tower, trained_classes
from alt_fast.inference.scoring import EvalConfig, Result, evaluate, mean_over_views
from alt_fast.inference.trained import load
from alt_fast.inference.zero_shot import score_zero_shot
from alt_fast.model.config import Head
from tests.browser import data_of


def result(scores: list[list[float]], labels: list[int], readable: list[bool] | None = None) -> Result:
    readable = readable or [True] * len(labels)
    return Result(torch.tensor(scores), torch.tensor(labels), [], torch.tensor(readable), Counter())


def test_top_k() -> None:
    scores = [[0.1, 0.9, 0.5], [0.7, 0.2, 0.1], [0.1, 0.2, 0.9], [0.3, 0.2, 0.1]]
    assert result(scores, [1, 1, 0, 2]).top(1) == 0.25
    assert result(scores, [1, 1, 0, 2]).top(2) == 0.5
    assert result(scores, [1, 1, 0, 2]).top(5) == 1.0
    assert result(scores, [1, 0, 2, 0], [True, True, True, False]).top(1) == 0.75  # an unreadable video is wrong


@pytest.mark.parametrize("head", ["alt", "both"])
def test_some_classes_are_scored_as_if_there_were_no_others(trained_run: Path, tmp_path: Path, head: Head) -> None:
    """By several views and both heads, whose votes weigh what they weigh without the other classes."""
    trained = load(trained_run)
    listed, names = read_list(trained_run.parent / "data" / "test.txt", trained.classes)
    videos = [*listed[:12], Video(tmp_path / "missing.webm", 7), *listed[12:]]
    testing, within = EvalConfig(5, 2, 2, Loading("torch", 0), head), [7, 3, 30]
    part = trained.test("test", videos, names, testing, within=within).part
    assert part is not None
    alone = [Video(video.path, within.index(video.label)) for video in videos if video.label in within]
    expected = trained.test("test", alone, [names[label] for label in within], testing)
    assert torch.equal(part.labels, expected.labels)
    assert torch.equal(part.readable, expected.readable)
    torch.testing.assert_close(part.scores, expected.scores)
    assert part.failures == expected.failures
    assert part.top(1) == expected.top(1)
    assert part.top(5) == 0.75  # of four videos one is missing
    everything = trained.test("test", videos[:5], names, testing, within=range(len(names)))
    assert everything.part is not None
    assert torch.equal(everything.part.scores, everything.scores)
    nothing = trained.test("test", videos[:5], names, testing, within=[]).part
    assert nothing is not None
    assert nothing.scores.shape == (0, 0)


def test_scores_every_video_whatever_the_batch_size(trained_run: Path) -> None:
    trained = load(trained_run)
    data = trained_run.parent / "data"
    videos, _ = read_list(data / "test.txt", trained.classes)
    classes = trained.model.text.classes(trained.classes, trained.templates)
    results = [
        evaluate(trained.model, videos, trained.spec, classes, EvalConfig(size, loading=Loading("torch", workers)))
        for size, workers in ((5, 0), (36, 2))
    ]
    assert results[0].scores.shape == (36, 36)
    torch.testing.assert_close(results[0].scores, results[1].scores, rtol=1e-4, atol=1e-4)
    metrics = json.loads((trained_run / "metrics.json").read_text())
    assert results[0].top(1) == metrics["top1"]


def test_views_are_averaged(trained_run: Path) -> None:
    trained = load(trained_run)
    videos, _ = read_list(trained_run.parent / "data" / "test.txt", trained.classes)
    classes = trained.model.text.classes(trained.classes, trained.templates)

    def score(views: EvalConfig) -> Result:
        return evaluate(trained.model, videos[:5], trained.spec, classes, views)

    one, many = score(EvalConfig(4, loading=Loading("torch", 0))), score(EvalConfig(4, 3, 2, Loading("torch", 0)))
    assert many.scores.shape == (5, 36)
    torch.testing.assert_close(many.scores.sum(1), torch.ones(5))
    assert not torch.allclose(one.scores, many.scores, atol=1e-6)
    assert sum(many.ways.values()) == 5 * 6


def test_the_mean_is_over_all_views(trained_run: Path) -> None:
    trained = load(trained_run)
    videos, _ = read_list(trained_run.parent / "data" / "test.txt", trained.classes)
    seen: list[torch.Tensor] = []

    def colours(video: torch.Tensor) -> torch.Tensor:
        seen.extend(video.mean((1, 3, 4)))
        return video.mean((1, 3, 4))

    clips, testing = EvalClips(videos[:2], trained.spec, crops=1, clips=3), EvalConfig(4, loading=Loading("torch", 0))
    found = mean_over_views(clips, testing, torch.device("cpu"), colours, width=3).mean
    assert not torch.equal(seen[0], seen[1])
    for number, mean in enumerate(found):
        torch.testing.assert_close(mean, sum(seen[3 * number : 3 * number + 3]) / 3)


def test_command_line_repeats_the_run_s_metrics(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(trained_run), "--workers", "0", "--json"]) == 0
    seen, unseen = json.loads(capsys.readouterr().out)
    metrics = json.loads((trained_run / "metrics.json").read_text())
    assert (seen["top1"], seen["top5"]) == (metrics["top1"], metrics["top5"])
    assert unseen["top1"] == metrics["top1_unseen_pairs"]
    assert (seen["videos"], seen["classes"], unseen["videos"], unseen["classes"]) == (36, 36, 12, 12)
    assert seen["ways"] == {"decoded by PyAV": 36}
    assert not {"shared", "unseen"} & (seen.keys() | unseen.keys())  # all were trained on, none was


def test_a_run_s_numbers_begin_where_those_of_its_class_file_do(trained_run: Path, tmp_path: Path) -> None:
    """At 1, as of classInd.txt; lists that the run made have names instead."""
    trained, run = load(trained_run), tmp_path / "run"
    run.mkdir()
    (tmp_path / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(trained.classes, start=1)))
    (tmp_path / "val.txt").write_text("a.mp4 3\nb.mp4 1\n")
    data = {"generate": None, "root": None, "test": str(tmp_path / "val.txt"), "unseen": None}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data | {"classes": str(tmp_path / "classInd.txt")}}))
    ((_, videos, names),) = run_lists(run, trained)
    assert [video.label for video in videos] == [2, 0]
    assert names == trained.classes
    (run / "test.csv").write_text(f"path,label\n/c.mp4,{trained.classes[4]}\n")
    (tmp_path / "classInd.txt").unlink()
    ((_, videos, names),) = run_lists(run, trained)
    assert [video.label for video in videos] == [4]
    (run / "test.csv").unlink()
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data | {"classes": None}}))
    with pytest.raises(AnnotationError, match="a class file is needed to tell"):
        run_lists(run, trained)
    (tmp_path / "classInd.txt").write_text("1 waving\n2 eating\n")  # no longer what it was
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data | {"classes": str(tmp_path / "classInd.txt")}}))
    assert trained_classes(run, trained) == trained.classes
    assert trained_classes(run / "model.safetensors", trained) == trained.classes
    for text in ("data:\n", "data: {root: here}\n", "model: {}\n"):  # somebody's own, or of an exported folder
        (run / "config.yaml").write_text(text)
        assert trained_classes(run, trained) == trained.classes


def write_run(folder: Path, classes: Sequence[str], started_in: Path) -> Path:
    """Write the run `folder`/runs/mine, with relative paths, and the list that it was tested on, of one video."""
    run, data = folder / "runs" / "mine", folder / "data"
    run.mkdir(parents=True)
    data.mkdir()
    (data / "test.csv").write_text(f"path,label\n{folder.name}.mp4,{classes[3]}\n")
    write_csv(data / "classes.csv", ("id", "name"), enumerate(classes))
    named = {"generate": None, "root": "data", "test": "data/test.csv", "unseen": None, "classes": "data/classes.csv"}
    settings = {"data": named, "pretrain": None, "model": {"pretrained": "data/clip.pt"}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    (run / "environment.json").write_text(json.dumps({"started_in": str(started_in), "run": str(run)}))
    return run


def test_relative_paths_of_a_run_start_where_it_was_started(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where it is tested, though there are lists of the same names; the classes and CLIP's weights too."""
    trained, mine, other = load(trained_run), tmp_path / "mine", tmp_path / "other"
    run = write_run(mine, trained.classes, mine)
    write_run(other, trained.classes, other)
    (mine / "data" / "clip.pt").touch()
    monkeypatch.chdir(other)
    ((name, (video,), _),) = run_lists(run, trained)
    assert (name, video.path) == ("data/test.csv", mine / "data" / "mine.mp4")
    assert trained_classes(run, trained) == str(mine / "data" / "classes.csv")
    assert starting_tower(run) == str(mine / "data" / "clip.pt")
    monkeypatch.chdir(mine)
    ((_, (video,), _),) = run_lists(run, trained)
    assert str(video.path) == "data/mine.mp4"
    (mine / "data" / "test.csv").unlink()
    monkeypatch.chdir(other)
    with pytest.raises(RunError, match=f"was tested on data/test.csv, which is not in {mine}: name the videos with"):
        run_lists(run, trained)


def test_a_run_may_be_moved_with_its_data_or_without(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, mine, moved = load(trained_run), tmp_path / "mine", tmp_path / "moved" / "there"
    run = write_run(mine, trained.classes, mine)

    def tested(run: Path) -> str:
        ((_, (video,), _),) = run_lists(run, trained)
        return str(video.path.absolute())

    shutil.copytree(mine, moved)
    assert tested(moved / "runs" / "mine") == f"{moved}/data/mine.mp4"
    assert tested(run.rename(tmp_path / "best")) == f"{mine}/data/mine.mp4"
    mine.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert tested(tmp_path / "best") == f"{tmp_path}/elsewhere/data/mine.mp4"
    (tmp_path / "best" / "environment.json").write_text("{}")  # of an older run
    assert tested(tmp_path / "best") == f"{tmp_path}/elsewhere/data/mine.mp4"


def test_classes_trained_on_are_told_from_the_others(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As training's unseen list may have both: the same scores as the protocol's, in every form."""
    data = trained_run.parent / "data"
    seen, unseen = read_classes(data / "classes.csv")[3], read_classes(data / "unseen_classes.csv")
    (tmp_path / "classes.csv").write_text("id,name\n" + "".join(f"{i},{n}\n" for i, n in enumerate([seen, *unseen])))
    lines = [line.split() for line in (data / "unseen.txt").read_text().splitlines()]
    rows = ["test/00003.webm 0", *(f"{path} {int(label) + 1}" for path, label in lines)]
    (tmp_path / "mine.txt").write_text("".join(f"{row}\n" for row in rows))
    options = ["--checkpoint", str(trained_run), "--list", str(tmp_path / "mine.txt"), "--root", str(data)]
    options += ["--classes", str(tmp_path / "classes.csv"), "--workers", "0"]
    assert main([*options, "--interpolate", "1", "--json"]) == 0
    row, same = json.loads(capsys.readouterr().out)
    tested = read_list(tmp_path / "mine.txt", tmp_path / "classes.csv", data, "test")
    again = score_zero_shot(load(trained_run), row["list"], *tested, EvalConfig(loading=Loading(workers=0)))
    assert row == again
    assert (row["shared"], row["unseen"]["videos"], row["unseen"]["classes"]) == ([seen], 12, 12)
    assert same["unseen"] == row["unseen"]
    capsys.readouterr()
    assert main([*options, "--report", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out
    part = row["unseen"]
    assert re.search(rf"never trained on +12 +12 +8.3% +{part['top1']:.1%} +{part['top5']:.1%}\n", printed)
    assert f"  trained on: {seen}\n" in printed
    assert data_of(tmp_path / "page.html")["lists"][0]["row"]["unseen"] == part


def test_table_and_lists_of_one_s_own(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = trained_run.parent / "data"
    classes = read_classes(data / "unseen_classes.csv")
    (tmp_path / "all.csv").write_text("id,name\n" + "".join(f"{i},{name}\n" for i, name in enumerate(classes)))
    (tmp_path / "mine.csv").write_text(f"path,label\nunseen/00000.webm,{classes[0]}\nmissing.webm,1\n")
    weights = shutil.copy(trained_run / "model.safetensors", tmp_path / "elsewhere.safetensors")
    options = ["--list", str(tmp_path / "mine.csv"), "--classes", str(tmp_path / "all.csv"), "--root", str(data)]
    assert main(["--checkpoint", str(weights), *options, "--workers", "0", "--r", "2"]) == 1
    out, err = capsys.readouterr()
    assert "mine.csv" in out
    assert "8.3%" in out  # chance among 12 classes
    assert f"unreadable, counted as wrong: {data / 'missing.webm'}: no such file" in err


def test_of_many_unreadable_videos_some_are_named(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone.csv").write_text("path,label\n" + "".join(f"{i:02}.mp4,0\n" for i in range(25)))
    assert main(["--checkpoint", str(trained_run), "--list", str(tmp_path / "gone.csv"), "--workers", "0"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == [
        f"unreadable, counted as wrong: {tmp_path / '19.mp4'}: no such file",
        "unreadable, counted as wrong: 5 more, which --json lists",
    ]


def test_a_missing_video_is_not_left_out_of_the_score(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside one that the model is right about it makes a half."""
    model, data = load(trained_run), trained_run.parent / "data"
    found = model.classes.index(model.classify(data / "test" / "00003.webm")[0][0])
    (tmp_path / "mine.txt").write_text(f"test/00003.webm {found}\nmissing.webm {found}\n")
    options = ["--list", str(tmp_path / "mine.txt"), "--root", str(data), "--workers", "0", "--json"]
    assert main(["--checkpoint", str(trained_run), *options]) == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["videos"], row["top1"], row["top5"]) == (2, 0.5, 0.5)


def test_labels_default_to_the_classes_trained_on(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("test/00003.webm 3\n")
    options = ["--list", str(tmp_path / "mine.txt"), "--root", str(trained_run.parent / "data")]
    assert main(["--checkpoint", str(trained_run), *options, "--workers", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["classes"] == 36


def test_bad_requests(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = shutil.copy(trained_run / "model.safetensors", tmp_path / "model.safetensors")
    requests = {
        ("--checkpoint", str(weights)): "name the videos to test on: --list FILE",
        ("--checkpoint", str(trained_run), "--list", str(tmp_path / "no.txt")): "cannot read",
        ("--checkpoint", str(trained_run), "--r", "-1"): "r must be >= 0",
        ("--checkpoint", str(trained_run), "--device", "cuda:99"): "cuda:99",
        ("--checkpoint", str(trained_run), "--crops", "0"): "crops must be >= 1, got 0",
        ("--checkpoint", str(trained_run), "--workers", "-1"): "workers must be >= 0",
        ("--checkpoint", str(trained_run), "--classes", "a.csv"): "--classes and --root belong to --list FILE",
    }
    for request, message in requests.items():
        usage = any(option in request for option in ("--r", "--device", "--crops", "--workers", "--classes"))
        assert main(list(request)) == (2 if usage else 1)
        assert message in capsys.readouterr().err


def test_another_corpus(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], corpus: Corpus) -> None:
    corpus.save(tmp_path / "five.json")
    command = ["--checkpoint", str(trained_run), "--json", "--workers", "0"]
    other = [*command, "--corpus", str(tmp_path / "five.json"), "--categories", "object", "motion"]
    assert main(other) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["videos"] == 36
    with cli.load_tested(make_parser().parse_args(other)) as (trained, _):
        model = trained.model
    texts = [entity.text for entity in corpus.entities if entity.category in ("object", "motion")]
    assert torch.equal(model.alignment.entities, model.text(texts))
    assert main([*command, "--corpus", str(tmp_path / "none.json")]) == 1
    assert "cannot read corpus" in capsys.readouterr().err


def test_interpolated_towers(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At 1 it is the trained one, at 0 CLIP's; between them half of each."""
    start = load_file(trained_run / "clip.safetensors")
    own = load(trained_run).model.encoder.visual.state_dict()
    for share in (0.0, 0.5, 1.0):
        trained = load(trained_run)
        trained.interpolate(str(trained_run / "clip.safetensors"), share)
        for name, value in trained.model.encoder.visual.state_dict().items():
            torch.testing.assert_close(value, (1 - share) * start[f"visual.{name}"] + share * own[name])
    assert main(["--checkpoint", str(trained_run), "--interpolate", "1", "0", "--json", "--workers", "0"]) == 0
    test, _, same, _, clip, _ = json.loads(capsys.readouterr().out)
    assert (same["interpolate"], same["top1"]) == (1, test["top1"])
    assert clip["list"].endswith("test.txt, interpolated 0")
    assert not same["same_tower"]
    unknown = ["--checkpoint", str(trained_run), "--interpolate", "0.5", "--tower", "nowhere.pt", "--json"]
    with patch("alt_fast.evaluate.score", side_effect=AssertionError("tested before the tower was read")):
        assert main(unknown) == 1
    assert "pretrained='nowhere.pt' is neither a file nor a tag" in capsys.readouterr().err
    assert main(["--checkpoint", str(trained_run), "--interpolate", "2"]) == 2
    assert main(["--checkpoint", str(trained_run), "--tower", "x"]) == 2
    shutil.copy(trained_run / "model.safetensors", tmp_path)
    test_list = str(trained_run.parent / "data" / "test.txt")
    alone = ["--checkpoint", str(tmp_path / "model.safetensors"), "--interpolate", "0.5", "--list", test_list]
    assert main(alone) == 1
    err = capsys.readouterr().err
    for said in ("--interpolate must be in [0, 1], got 2", "--tower belongs to --interpolate", "name it with --tower"):
        assert said in err


def test_a_tower_that_lies_between_is_not_interpolated_again(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of a half would be called half of the trained one."""
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"\binterpolate: [\d.]+", "interpolate: 0.75", config))
    command = ["--checkpoint", str(run), "--interpolate", "0.5"]
    assert main(command) == 1
    assert "run was trained with optim.interpolate 0.75: its image tower lies between" in capsys.readouterr().err
    assert main([*command, "--tower", str(run / "clip.safetensors")]) == 1
    assert "the trained one was not kept" in capsys.readouterr().err


def test_a_corpus_that_nothing_would_align_to_is_refused(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--checkpoint", str(trained_run), "--head", "clip", "--categories", "body", "--workers", "0"]
    assert main(command) == 2
    assert "--corpus and --categories have no effect on --head clip" in capsys.readouterr().err
    assert main([*command, "--probe-alignment", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["alignment"]["entities"] for row in rows] == [7, 7]
    assert main([*command, "--explain", "1", "--report", str(tmp_path / "page.html")]) == 0


def test_a_tower_that_training_left_as_it_was_is_called_so(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every share of it scores the same; the page has them all."""
    start, own = load_file(trained_run / "clip.safetensors"), load(trained_run).model.encoder.visual.state_dict()
    same = start | {f"visual.{name}": value.contiguous() for name, value in own.items()}
    save_file(same, tmp_path / "same.safetensors")
    command = ["--checkpoint", str(trained_run), "--workers", "0", "--report", str(tmp_path / "page.html")]
    assert main([*command, "--interpolate", "0.5", "0", "--tower", str(tmp_path / "same.safetensors")]) == 0
    assert f"interpolated: {cli.SAME_TOWER}\n" in capsys.readouterr().out
    test, unseen = data_of(tmp_path / "page.html")["lists"]
    for part in (test, unseen):
        own = {name: part["row"][name] for name in ("top1", "top5")}
        assert part["interpolated"] == [{"interpolate": share, **own} for share in (0.5, 0)]
    assert test["interpolation"] == unseen["interpolation"] == cli.SAME_TOWER


def test_texts_of_all_lists(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file for the run's lists, and for interpolated towers too."""
    trained, seen = load(trained_run), []

    def evaluate(model: object, videos: list[Video], spec: object, classes: Tensor, *_: object, **__: object) -> Result:
        seen.append(classes)
        return result([[1.0] * len(classes)] * len(videos), [video.label for video in videos])

    monkeypatch.setattr("alt_fast.inference.scoring.evaluate", evaluate)
    names = trained.classes, read_classes(trained_run.parent / "data" / "unseen_classes.csv")
    texts = {name: f"{name}: a shape in motion" for part in names for name in part[:3]}
    write_texts(tmp_path / "texts.csv", texts)
    command = ["--checkpoint", str(trained_run), "--texts", str(tmp_path / "texts.csv")]
    assert main([*command, "--interpolate", "0.5"]) == 0
    trained.use_texts(texts, [*names[0], *names[1]])
    expected = [trained.embed(part) for part in names] * 2
    assert all(map(torch.equal, seen, expected))
    assert len(seen) == 4
    write_texts(tmp_path / "texts.csv", texts | {"yawning": "a mouth"})
    assert main(command) == 1
    assert "texts.csv: class 'yawning' is not among the 48 classes" in capsys.readouterr().err
