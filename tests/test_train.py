"""The whole job at its smallest: from nothing to metrics, interrupted anywhere, on other people's files."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from alt_fast.corpus import Corpus, Entity
from alt_fast.data.batch import Failure
from alt_fast.distributed import pick_device
from alt_fast.errors import RunError
from alt_fast.evaluate import main as evaluate
from alt_fast.inference.trained import load
from alt_fast.train import main
from alt_fast.training.config import OptimConfig, parse
from alt_fast.training.quarantine import Quarantine
from tests.conftest import SMALL_JOB, VideoWriter


def test_leaves_a_run_folder_that_explains_itself(trained_run: Path) -> None:
    metrics = json.loads((trained_run / "metrics.json").read_text())
    assert metrics["chance"] == 1 / 36
    assert metrics["chance_unseen_pairs"] == 1 / 12
    names = {"top1", "top5", "top1_unseen_pairs", "frame_only_top1", "frame_only_top1_unseen_pairs"}
    assert all(0 <= metrics[name] <= 1 for name in names)
    assert metrics["test_videos"] == 36
    assert metrics["unreadable"] == []
    assert set(metrics["stage_seconds"]) == {"data", "clip", "alt", "frame_only", "evaluation"}
    config = yaml.safe_load((trained_run / "config.yaml").read_text())
    assert config["optim"]["epochs"] == 2
    same = parse([*SMALL_JOB, f"--data.root={config['data']['root']}"])
    assert replace(parse(["--config", str(trained_run / "config.yaml")]), checkpoint_every=2) == same
    environment = json.loads((trained_run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert list((trained_run / "tensorboard").glob("events*"))
    assert (trained_run / "classes.csv").read_text().startswith("id,name\n0,a square moving right\n")


def run_cli(*arguments: str, output: Path, data: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "alt_fast.train", *SMALL_JOB, "--out", str(output), "--data.root", str(data)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True, env=environment)


def test_killed_anywhere_and_resumed_gives_the_same_weights(trained_run: Path, tmp_path: Path) -> None:
    """kill -9 while generating data, pretraining, training and training the frame-only model."""
    output, data = tmp_path / "run", tmp_path / "data"
    for sign in (
        data / "train" / "00003.webm",
        output / "clip-00000004.state",
        output / "alt-00000006.state",
        output / "frame_only-00000006.state",
    ):
        process = run_cli("--resume", output=output, data=data)
        while not sign.exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (output / "metrics.json").exists()
    process = run_cli("--resume", output=output, data=data)
    assert process.wait() == 0, process.communicate()[1]
    expected, resumed = load_file(trained_run / "model.safetensors"), load_file(output / "model.safetensors")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    scores = [json.loads((run / "metrics.json").read_text()) for run in (trained_run, output)]
    assert scores[0]["frame_only_top1"] == scores[1]["frame_only_top1"]


def test_seeds_differ(trained_run: Path, shapes: Path, tmp_path: Path) -> None:
    arguments = [*SMALL_JOB, "--out", str(tmp_path / "run"), "--data.root", str(trained_run.parent / "data")]
    assert main([*arguments, "--seed", "1", "--frame_only", "false", "--optim.epochs", "1"]) == 0
    first, second = load_file(trained_run / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert not torch.equal(first["decoder.mlp.0.weight"], second["decoder.mlp.0.weight"])


def test_compile_trains(trained_run: Path, tmp_path: Path) -> None:
    arguments = [*SMALL_JOB, "--out", str(tmp_path / "run"), "--data.root", str(trained_run.parent / "data")]
    assert main([*arguments, "--compile", "--frame_only", "false"]) == 0
    eager, compiled = load_file(trained_run / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert eager.keys() == compiled.keys()
    name = "decoder.mlp.0.weight"
    torch.testing.assert_close(eager[name], compiled[name], rtol=0, atol=2e-3)  # six steps of different rounding


def test_compile_without_a_compiler_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*SMALL_JOB, "--out", str(tmp_path / "run"), "--device", "cpu", "--compile"]) == 1
    assert "needs a C++ compiler" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_amp_and_mixing_train(trained_run: Path, tmp_path: Path) -> None:
    arguments = [*SMALL_JOB, "--out", str(tmp_path / "run"), "--data.root", str(trained_run.parent / "data")]
    mixing = ["--optim.amp", "true", "--optim.mixup", "0.8", "--optim.cutmix", "1.0", "--optim.accumulate", "2"]
    assert main([*arguments, *mixing, "--frame_only", "false", "--eval_every", "1", "--optim.clip_grad", "null"]) == 0
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_the_best_weights_stay_and_are_what_was_tested(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a mean of the weights, and rates scaled to the batch."""
    arguments = [*SMALL_JOB, "--out", str(tmp_path / "run"), "--data.root", str(trained_run.parent / "data")]
    arguments += ["--optim.epochs", "4", "--eval_every", "1", "--optim.ema", "0.5", "--frame_only", "false"]
    assert main([*arguments, "--optim.scale_from", "24"]) == 0
    printed = capsys.readouterr().out
    assert "learning rates 0.0005, image tower 0.00015, scaled from batch 24" in printed
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    scores = {entry["step"]: entry["top1"] for entry in entries if "top1" in entry}
    final = json.loads((tmp_path / "run" / "metrics.json").read_text())["top1"]
    assert list(scores) == [3, 6, 9]
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best["top1"] == max(*scores.values(), final)
    assert best["epoch"] == [*scores.values(), final].index(best["top1"]) + 1
    assert best["chosen_on"] == "the test list"
    weights, test = str(tmp_path / "run" / "best.safetensors"), str(trained_run.parent / "data" / "test.txt")
    assert evaluate(["--checkpoint", weights, "--list", test, "--workers", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["top1"] == pytest.approx(best["top1"])
    assert max(entry["lr"] for entry in entries if entry["stage"] == "alt" and "lr" in entry) <= 0.0005


def test_goes_on_from_a_trained_model(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On other classes, with the same corpus or a larger one; another kind of model is refused."""
    data = trained_run.parent / "data"
    lists = ["--data.train", str(data / "unseen.txt"), "--data.test", str(data / "unseen.txt"), "--data.workers", "0"]
    lists += ["--data.classes", str(data / "unseen_classes.csv"), "--model.frames", "2", "--optim.batch_size", "12"]
    few = ["--config", "few_shot_motion_shapes", *lists, "--optim.warmup_epochs", "0", "--optim.epochs", "1"]
    still = ["--optim.lr", "0", "--optim.backbone_lr", "0"]
    assert main([*few, *still, "--start_from", str(trained_run), "--out", str(tmp_path / "still")]) == 0
    before, now = load(trained_run), load(tmp_path / "still")
    assert len(now.classes) == 12
    weights = before.model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in now.model.state_dict().items())
    corpus = before.model.corpus
    assert corpus is not None
    Corpus((*corpus.entities, Entity("comet", "a tail of light", "object"))).save(tmp_path / "larger.json")
    larger = ["--corpus", str(tmp_path / "larger.json"), "--model.frames", "3"]
    start = ["--start_from", str(trained_run)]
    assert main([*few, *start, *larger, "--out", str(tmp_path / "larger")]) == 0
    assert load(tmp_path / "larger").model.alignment.entities.shape[0] == len(corpus) + 1
    for number, (options, message) in enumerate(
        [
            (["--model.query", "frame"], "is another kind of model: model.query is 'entities' there, 'frame' here"),
            (["--start_from", str(tmp_path)], "holds no model.safetensors"),
            (["--model.depth", "3"], "model.depth is 2 there, 3 here"),
        ]
    ):
        assert main([*few, *start, *options, "--out", str(tmp_path / f"refused{number}")]) == 1
        assert message in capsys.readouterr().err


def test_a_folder_with_a_run_is_not_overwritten(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL_JOB, "--out", str(trained_run), "--data.root", str(trained_run.parent / "data")]
    before = (trained_run / "model.safetensors").read_bytes()
    assert main(arguments) == 1
    assert "holds a run already: add --resume" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--optim.lr", "0.5"]) == 1
    assert "other settings: optim.lr was 0.001, now 0.5" in capsys.readouterr().err
    assert main([*SMALL_JOB, "--resume"]) == 1
    assert "--resume needs --output" in capsys.readouterr().err
    assert (trained_run / "model.safetensors").read_bytes() == before


def other_dataset(write_video: VideoWriter, folder: Path, bad: int = 0) -> list[str]:
    """A dataset of the user's own, H.264 with `bad` unusable files; returns the options to train on it."""
    for i in range(24 - bad):
        write_video(f"clip {i}.mp4", frames=8)
    for i in range(24 - bad, 24):
        (folder / f"clip {i}.mp4").write_bytes(b"no video")
    (folder / "train.txt").write_text("".join(f"clip {i}.mp4 {i % 2}\n" for i in range(24)))
    (folder / "test.csv").write_text("path,label\nclip 0.mp4,going dark\nclip 1.mp4,getting bright\nnone.mp4,1\n")
    (folder / "names.csv").write_text("id,name\n0,going dark\n1,getting bright\n")
    lists = {"train": "train.txt", "test": "test.csv", "classes": "names.csv"}
    options = [f"--data.{name}={folder / file}" for name, file in lists.items()]
    return [*SMALL_JOB, "--data.generate", "null", *options, "--frame_only", "false", "--out", str(folder / "run")]


def test_own_videos_with_a_bad_one(
    write_video: VideoWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = other_dataset(write_video, tmp_path, bad=1)
    assert main([*arguments, "--data.max_bad_share", "0.1"]) == 0
    quarantine = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert [Path(entry["path"]).name for entry in quarantine] == ["clip 23.mp4"]
    assert "no video" in quarantine[0]["cause"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [Path(entry["path"]).name for entry in metrics["unreadable"]] == ["none.mp4"]
    assert metrics["top1"] <= 2 / 3  # the missing video counts as wrong
    assert "quarantined" in capsys.readouterr().out


def test_too_many_bad_videos_stop_the_run(
    write_video: VideoWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(other_dataset(write_video, tmp_path, bad=4)) == 1
    message = capsys.readouterr().err
    assert "of 24 training videos cannot be used, more than data.max_bad_share 0.01 allows" in message
    assert str(tmp_path / "run" / "quarantine.jsonl") in message


def test_a_wrong_root_stops_the_run(
    write_video: VideoWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*other_dataset(write_video, tmp_path), "--data.root", str(tmp_path / "elsewhere")]
    assert main([*arguments, "--data.max_bad_share", "1"]) == 1
    assert "no such file. Is data.root right?" in capsys.readouterr().err


def test_quarantine_remembers_across_restarts(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path, 100, 0.01).add([Failure("a.mp4", "empty"), Failure("a.mp4", "empty")])
    again = Quarantine(path, 100, 0.01)
    again.add([Failure("a.mp4", "empty")])
    assert len(path.read_text().splitlines()) == 1
    with pytest.raises(RunError, match="2 of 100"):
        again.add([Failure("b.mp4", "empty")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.generate", "null"], "name the videos"),
        (["--corpus", "null"], "name the text corpus"),
        (["--corpus", "/nowhere.json"], "cannot read corpus /nowhere.json"),
        (["--optim.batch_size", "500"], "optim.batch_size 500 is more than the 36 training videos"),
        (["--device", "cuda:9"], "device 'cuda:9' was asked for"),
        (["--pretrain", "null", "--model.pretrained", "nonsense"], "neither a file nor a tag"),
    ],
)
def test_bad_settings(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    if options[0] == "--device" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA devices")
    data = trained_run.parent / "data"
    assert main([*SMALL_JOB, "--out", str(tmp_path / "run"), "--data.root", str(data), *options]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optim.epochs", "0"], "epochs must be >= 1"),
        (["--optim.accumulate", "5"], "accumulate must divide batch_size"),
        (["--optim.warmup_epochs", "9"], "warmup_epochs must be in"),
        (["--optim.mixup", "0.8", "--optim.batch_size", "9"], "must be even"),
        (["--model.tuning", "half"], "half"),
        (["--no.such", "1"], "no.such"),
        (["--model.pretrained", "openai"], "set one of them to null"),
        (["--checkpoint_every", "0"], "checkpoint_every must be >= 1"),
        (["--eval_every", "-1"], "eval_every must be >= 0"),
        (["--keep", "0"], "keep must be >= 1, got 0"),
        (["--optim.ema", "1"], "ema must be in [0, 1), got 1.0"),
        (["--optim.scale_from", "0"], "scale_from must be >= 1, got 0"),
        (["--start_from", "runs/a"], "start_from has all weights: set pretrain and model.pretrained to null"),
    ],
)
def test_bad_options(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    with pytest.raises(SystemExit):
        parse([*SMALL_JOB, *options])
    assert message in capsys.readouterr().err


def test_configuration_files(tmp_path: Path) -> None:
    paper = parse(["--config", "kinetics400_b16"])
    assert paper.optim == OptimConfig()
    assert paper.model.backbone == "ViT-B-16"
    assert parse([]).model.backbone == "tiny"
    assert parse([]).data.generate == "motion_shapes"
    (tmp_path / "mine.yaml").write_text("model:\n  r: [8, -0.5]\n  categories: [body, scene]\noptim:\n  lr: 0.25\n")
    mine = parse(["--config", str(tmp_path / "mine.yaml"), "--model.depth", "7"])
    assert tuple(mine.model.r) == (8, -0.5)  # type: ignore[arg-type]
    assert mine.model.categories == ["body", "scene"]
    assert (mine.optim.lr, mine.model.depth, mine.data.generate) == (0.25, 7, None)


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in ("--compile", "--resume", "--out", "--model.r", "--optim.lr", "--data.train", "--augment.flip"):
        assert option in text
    assert "go on with the run in `out` from its last checkpoint" in " ".join(text.split())


def test_auto_picks_a_device() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(RunError, match="'toaster' is no device"):
        pick_device("toaster")
