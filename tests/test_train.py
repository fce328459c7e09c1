"""The whole job at its smallest: from nothing to metrics, interrupted anywhere, on other people's files."""

import csv
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config

import alt_fast
from alt_fast import progress
from alt_fast.classify import main as classify
from alt_fast.corpus import Corpus, Entity
from alt_fast.data.annotations import read_classes, read_list
from alt_fast.data.batch import Failure
from alt_fast.data.config import Loading, MotionShapesConfig
from alt_fast.distributed import join_world, pick_device
from alt_fast.errors import ArgumentError, RunError
from alt_fast.evaluate import main as evaluate
from alt_fast.export import main as export
from alt_fast.files import sole_writer
from alt_fast.inference.scoring import EvalConfig
from alt_fast.inference.trained import load
from alt_fast.inference.zero_shot import score_zero_shot
from alt_fast.model.clip_weights import TINY_CONFIG, build_clip
from alt_fast.train import main
from alt_fast.training.config import DataConfig, OptimConfig, TrainConfig, parse
from alt_fast.training.quarantine import Quarantine
from alt_fast.training.run_folder import open_run_folder
from tests.conftest import SMALL_JOB, VideoWriter
from tests.processes import children, start, start_anew


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
    assert environment["run"] == str(trained_run.resolve())
    assert Path(environment["started_in"]).is_dir()
    assert list((trained_run / "tensorboard").glob("events*"))
    assert (trained_run / "classes.csv").read_text().startswith("id,name\n0,a square moving right\n")


def job(trained_run: Path, folder: Path) -> list[str]:
    """The command line of SMALL_JOB in another folder, on the data that is there."""
    return [*SMALL_JOB, "--out", str(folder / "run"), "--data.root", str(trained_run.parent / "data")]


def test_killed_anywhere_and_resumed_gives_the_same_weights(trained_run: Path, tmp_path: Path) -> None:
    """kill -9 while generating data, pretraining, training and training the frame-only model."""
    output, data = tmp_path / "run", tmp_path / "data"
    command = ["alt_fast.train", *SMALL_JOB, "--out", str(output), "--data.root", str(data), "--resume"]
    for launch, sign in (
        (start, data / "train" / "00003.webm"),
        (start, output / "clip-00000004.state"),
        (start_anew, output / "alt-00000006.state"),
        (start, output / "frame_only-00000006.state"),
    ):
        with launch(*command) as process:
            process.wait_until(sign.exists)
            process.kill()
            assert process.wait() == -signal.SIGKILL
        assert not (output / "metrics.json").exists()
    with start(*command) as process:
        assert process.wait() == 0, process.errors
    expected, resumed = load_file(trained_run / "model.safetensors"), load_file(output / "model.safetensors")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    scores = [json.loads((run / "metrics.json").read_text()) for run in (trained_run, output)]
    assert scores[0]["frame_only_top1"] == scores[1]["frame_only_top1"]


def test_of_two_processes_the_second_is_refused(trained_run: Path, tmp_path: Path) -> None:
    command = ["alt_fast.train", *job(trained_run, tmp_path), "--resume", "--frame_only", "false"]
    lock, metrics = tmp_path / "run" / ".lock", tmp_path / "run" / "metrics.json"
    with start(*command) as first:
        first.wait_until(lambda: lock.exists() and lock.read_text())
        first.kill(signal.SIGSTOP)  # so that it is not done before the second begins
        with start(*command) as second:
            assert second.wait() == 1
            assert f"error: {tmp_path / 'run'} is being written by process {first.pid} on " in second.errors
            assert len(second.errors.splitlines()) == 1
        assert not metrics.exists()
        first.kill(signal.SIGCONT)
        assert first.wait() == 0, first.errors
    assert json.loads(metrics.read_text())["test_videos"] == 36


def test_a_killed_run_leaves_no_lock(trained_run: Path, tmp_path: Path) -> None:
    """Nor do its decoding processes, which outlive it by some seconds."""
    command = ["alt_fast.train", *job(trained_run, tmp_path), "--resume", "--frame_only", "false"]
    with start(*command) as killed:
        killed.wait_until(lambda: list((tmp_path / "run").glob("alt-*.state")) and children(killed.pid))
        killed.kill(signal.SIGSTOP)
        decoding = children(killed.pid)
        assert decoding
        for pid in decoding:
            os.kill(pid, signal.SIGSTOP)  # they cannot even end by themselves
        killed.kill()
        assert killed.wait() == -signal.SIGKILL
        with sole_writer(tmp_path / "run"):
            pass
        with start(*command) as resumed:
            assert resumed.wait() == 0, resumed.errors
        assert all("State:\tT" in Path(f"/proc/{pid}/status").read_text() for pid in decoding)
    expected, found = load_file(trained_run / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_lines_say_how_long_it_will_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where standard error is no terminal, every stage says so twice a minute."""
    assert progress.LINE_EVERY <= 30
    monkeypatch.setattr(progress, "LINE_EVERY", 0.01)
    arguments = [*SMALL_JOB, "--out", str(tmp_path / "run"), "--data.root", str(tmp_path / "data")]
    assert main([*arguments, "--optim.epochs", "1"]) == 0
    lines = capsys.readouterr().err.splitlines()
    for stage in ("Motion Shapes", "clip", "alt", "frame_only", "test", "unseen"):
        assert any(re.match(rf"{stage}: .*\d+/\d+ \[\d\d:\d\d<\d\d:\d\d,", line) for line in lines), (stage, lines)


def test_an_error_that_is_not_ours_keeps_its_traceback(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ValueError of a library, in the middle of training."""

    def refuse(*tensors: object) -> None:
        raise ValueError("Expected input batch_size to match target batch_size")

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", refuse)
    with pytest.raises(ValueError, match="Expected input batch_size") as caught:
        main(job(trained_run, tmp_path))
    assert [entry.name for entry in caught.traceback][-2:] == ["matching_loss", "refuse"]
    assert "error" not in capsys.readouterr().err


def test_seeds_differ(trained_run: Path, tmp_path: Path) -> None:
    arguments = job(trained_run, tmp_path)
    assert main([*arguments, "--seed", "1", "--frame_only", "false", "--optim.epochs", "1"]) == 0
    first, second = load_file(trained_run / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert not torch.equal(first["decoder.mlp.0.weight"], second["decoder.mlp.0.weight"])


def test_compile_trains(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without it. With one layer, and all kernels of a graph in one file: it compiles in seconds."""
    quick: dict[str, Any] = {"cpp_wrapper": True, "cpp_wrapper_build_separate": True}
    quick |= {"aot_inductor.debug_compile": True, "cpp_cache_precompile_headers": False}
    for tower in ("vision_cfg", "text_cfg"):
        monkeypatch.setitem(TINY_CONFIG, tower, TINY_CONFIG[tower] | {"layers": 1})
    settings = ["--model.depth", "1", "--frame_only", "false", "--data.workers", "0"]
    settings += ["--optim.epochs", "1", "--optim.warmup_epochs", "0", "--pretrain.steps", "1"]
    counters.clear()
    for name, options, graphs in (("eager", [], 0), ("compiled", ["--compile"], 1)):
        with inductor_config.patch(quick):
            assert main([*job(trained_run, tmp_path / name), *settings, *options]) == 0
        assert counters["stats"]["unique_graphs"] == graphs
    eager, compiled = (load_file(tmp_path / name / "run" / "model.safetensors") for name in ("eager", "compiled"))
    assert eager.keys() == compiled.keys()
    for name, weight in eager.items():
        torch.testing.assert_close(weight, compiled[name], rtol=0, atol=2e-3)  # three steps of different rounding


def test_compile_without_a_compiler_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*SMALL_JOB, "--out", str(tmp_path / "run"), "--device", "cpu", "--compile"]) == 1
    assert "needs a C++ compiler" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_amp_and_mixing_train(trained_run: Path, tmp_path: Path) -> None:
    arguments = [*job(trained_run, tmp_path), "--pretrain.steps", "1"]
    mixing = ["--optim.amp", "true", "--optim.mixup", "0.8", "--optim.cutmix", "1.0", "--optim.accumulate", "2"]
    assert main([*arguments, *mixing, "--frame_only", "false", "--eval_every", "1", "--optim.clip_grad", "null"]) == 0
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_the_best_weights_stay_and_are_what_was_tested(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a mean of the weights, and rates scaled to the batch."""
    arguments = [*job(trained_run, tmp_path), "--pretrain.steps", "1"]
    arguments += ["--optim.epochs", "4", "--eval_every", "1", "--optim.ema", "0.5", "--frame_only", "false"]
    assert main([*arguments, "--optim.scale_from", "24"]) == 0
    printed = capsys.readouterr().out
    assert "learning rates 0.0005, image tower 5e-05, scaled from batch 24" in printed
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


def test_a_tower_that_is_kept_part_of_the_way(trained_run: Path, tmp_path: Path) -> None:
    """As the same run interpolated afterwards; a run that goes on does not interpolate twice."""
    options = [*job(trained_run, tmp_path), "--frame-only", "false", "--optim.interpolate", "0.25"]
    expected = load(trained_run)
    expected.interpolate(str(trained_run / "clip.safetensors"), 0.25)
    for more in [], ["--resume"]:
        assert main([*options, *more]) == 0
        kept = load(tmp_path / "run").model.state_dict()
        assert all(torch.equal(kept[name], weight) for name, weight in expected.model.state_dict().items())


def test_goes_on_from_a_trained_model(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On other classes, with the same corpus or a larger one; another kind of model is refused."""
    data = trained_run.parent / "data"
    lists = ["--data.train", str(data / "unseen.txt"), "--data.test", str(data / "unseen.txt"), "--data.workers", "0"]
    lists += ["--data.classes", str(data / "unseen_classes.csv"), "--model.frames", "2", "--optim.batch_size", "12"]
    few = ["--config", "few_shot_motion_shapes", *lists, "--optim.warmup_epochs", "0", "--optim.epochs", "1"]
    few += ["--model.pool=mean", "--model.query_norm=false", "--model.shortcut=false", "--model.tuning=finetune"]
    still = ["--optim.lr", "0", "--optim.backbone_lr", "0"]
    assert main([*few, *still, "--start_from", str(trained_run), "--out", str(tmp_path / "still")]) == 0
    before, now = load(trained_run), load(tmp_path / "still")
    assert len(now.classes) == 12
    weights = before.model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in now.model.state_dict().items())
    corpus = before.model.corpus
    assert corpus is not None
    Corpus((*corpus.entities, Entity("comet", "a tail of light", "object"))).save(tmp_path / "larger.json")
    larger = ["--corpus", str(tmp_path / "larger.json"), "--model.frames", "3", "--model.tau_start", "1"]
    start = ["--start_from", str(trained_run)]
    assert main([*few, *start, *larger, "--out", str(tmp_path / "larger")]) == 0
    assert load(tmp_path / "larger").model.alignment.entities.shape[0] == len(corpus) + 1
    for number, (options, message) in enumerate(
        [
            (["--model.query", "frame"], "is another kind of model: model.query is 'entities' there, 'frame' here"),
            (["--start_from", str(tmp_path)], "holds no model.safetensors"),
            (["--model.depth", "3"], "model.depth is 2 there, 3 here"),
            (["--augment.normalize", "clip"], "augment.normalize is 'imagenet' there, 'clip' here"),
            (["--templates", "name"], "templates is ("),
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
    assert "--resume needs --out" in capsys.readouterr().err
    assert (trained_run / "model.safetensors").read_bytes() == before


def clips_of_two_classes(write_video: VideoWriter, folder: Path, each: int) -> list[str]:
    """A folder of clips; returns the options of a training on it that takes a second."""
    clip = write_video("clip.mp4", frames=4)
    for label in ("playing_guitar", "tai_chi"):
        (folder / "clips" / label).mkdir(parents=True)
        for i in range(each):
            shutil.copy(clip, folder / "clips" / label / f"{i}.mp4")
    tower = ["--model.backbone", "tiny", "--model.pretrained", "motion_shapes_2", "--model.image-size", "64"]
    options = ["--model.frames", "2", "--model.r", "4", "--optim.epochs", "1", "--optim.warmup-epochs", "0"]
    folders = ["--data.train", str(folder / "clips"), "--out", str(folder / "run")]
    return [*folders, *tower, *options, "--data.workers", "0"]


def test_a_mistake_before_the_first_step_leaves_the_folder_free(
    write_video: VideoWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --resume and without; the lists of the first attempt go, lists that somebody put there stay."""
    arguments = clips_of_two_classes(write_video, tmp_path, each=8)
    shutil.copytree(tmp_path / "clips", tmp_path / "more" / "clips")
    others = [*arguments, "--data.train", str(tmp_path / "more" / "clips")]
    assert main([*arguments, "--data.train", str(tmp_path / "clipss")]) == 1
    assert main([*others, "--resume"]) == 1
    message = "batch_size 16 is more than the 12 training videos: --optim.batch-size 12 is the most that fits\n"
    assert capsys.readouterr().err.endswith(message)
    assert "more/clips" in (tmp_path / "run" / "train.csv").read_text()
    fitting = ["--optim.batch-size", "12"]
    assert main([*arguments, *fitting, "--model.pretrained", "nonsense", "--resume"]) == 1
    assert "more/clips" not in (tmp_path / "run" / "train.csv").read_text()
    assert main([*arguments, *fitting]) == 0
    assert main([*arguments, *fitting]) == 1
    assert "holds a run already" in capsys.readouterr().err


def test_a_run_folder_is_begun_anew_only_where_it_is_one(tmp_path: Path) -> None:
    """A configuration that somebody put there stays, and so does a list that is to be read."""
    config = TrainConfig(out=str(tmp_path), data=DataConfig(train=str(tmp_path / "train.csv"), test="test.csv"))
    for name in ("train.csv", "test.csv", "config.yaml"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match="holds a run already"), open_run_folder(config):
        pass
    assert (tmp_path / "config.yaml").read_text() == "mine"
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(RunError, match="holds train.csv, and no run that it is of"), open_run_folder(config):
        pass
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).unlink()
    with open_run_folder(config):
        for name in ("train.csv", "test.csv"):
            (tmp_path / name).write_text("mine")
    with open_run_folder(replace(config, seed=1)):
        assert (tmp_path / "train.csv").read_text() == "mine"
        assert not (tmp_path / "test.csv").exists()
        assert yaml.safe_load((tmp_path / "config.yaml").read_text())["seed"] == 1
    (tmp_path / "alt-00000001.state").touch()
    with pytest.raises(RunError, match="holds a run already"), open_run_folder(config):
        pass


def other_dataset(
    write_video: VideoWriter, folder: Path, bad: int = 0, names: Sequence[str] = ("going dark", "getting bright")
) -> list[str]:
    """A dataset of the user's own, H.264 with `bad` unusable files; returns the options to train on it."""
    for i in range(24 - bad):
        write_video(f"clip {i}.mp4", frames=8)
    for i in range(24 - bad, 24):
        (folder / f"clip {i}.mp4").write_bytes(b"no video")
    (folder / "train.txt").write_text("".join(f"clip {i}.mp4 {i % 2}\n" for i in range(24)))
    test = [("clip 0.mp4", names[0]), ("clip 1.mp4", names[1]), ("none.mp4", "1")]
    for name, rows in (("test", [("path", "label"), *test]), ("names", [("id", "name"), *enumerate(names)])):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    lists = {"train": "train.txt", "test": "test.csv", "classes": "names.csv"}
    options = [f"--data.{name}={folder / file}" for name, file in lists.items()]
    options += ["--frame_only", "false", "--pretrain.steps", "1", "--out", str(folder / "run")]
    return [*SMALL_JOB, "--data.generate", "null", *options]


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
    assert metrics["test_videos"] == 3
    assert "quarantined" in capsys.readouterr().out


def test_a_folder_of_clips_is_all_it_takes(
    write_video: VideoWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is held out is tested, and stays so whatever comes into the folder."""
    arguments = clips_of_two_classes(write_video, tmp_path, each=15)
    assert parse(arguments[:4]).model.pretrained == "openai"  # without a configuration: a CLIP, on one's own clips
    assert main([*arguments, "--data.missing", "skip"]) == 0
    out = capsys.readouterr().out
    assert "data.train: 0 of 30 videos (0.0%) are missing and left out\n" in out
    assert "no data.test: 6 of 30 videos (20.0%) are held out with seed 0" in out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["test_videos"], metrics["missing"]) == (6, {})
    shutil.copy(tmp_path / "clip.mp4", tmp_path / "clips" / "tai_chi" / "new.mp4")
    assert evaluate(["--checkpoint", str(tmp_path / "run"), "--workers", "0", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["list"], row["videos"], row["top1"]) == (str(tmp_path / "run" / "test.csv"), 6, metrics["top1"])
    assert main([*arguments, "--data.missing", "skip", "--resume", "--optim.max-skipped", "3"]) == 0  # decides nothing
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["top1"] == metrics["top1"]
    assert main([*arguments, "--resume"]) == 1
    assert "data.missing was 'skip', now 'error'" in capsys.readouterr().err
    listed = tmp_path / "run" / "train.csv"
    listed.write_text(listed.read_text().replace(",tai chi", ",playing guitar", 1))
    assert main([*arguments, "--data.missing", "skip", "--resume"]) == 1
    assert "was started with other lists: data.train was '24 (" in capsys.readouterr().err
    exported = tmp_path / "exported"
    assert export(["--checkpoint", str(tmp_path / "run"), "--out", str(exported)]) == 0
    assert evaluate(["--checkpoint", str(exported)]) == 1
    assert "does not say which videos were held out: name them with --list FILE" in capsys.readouterr().err


def test_an_unseen_list_may_share_classes(
    write_video: VideoWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As UCF-101 shares 22 with Kinetics-400: both scores are in the metrics, and the shared names, however written."""
    arguments = other_dataset(write_video, tmp_path, names=("playing guitar", "tai chi"))
    arguments += ["--optim.epochs", "1", "--optim.warmup_epochs", "0"]
    rows = ["TaiChi/v.avi", "ApplyEyeMakeup/v.avi", "HorseRace/v.avi"]
    for number, row in enumerate(rows):
        (tmp_path / row).parent.mkdir()
        (tmp_path / row).symlink_to(tmp_path / f"clip {number}.mp4")
    unseen = tmp_path / "testlist01.txt"
    unseen.write_text("\n".join(rows) + "\n")
    assert main([*arguments, "--data.unseen", str(unseen)]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["shared_classes"] == ["tai chi"]
    assert (metrics["zero_shot_videos"], metrics["chance_zero_shot"]) == (3, 1 / 3)
    assert (metrics["unseen_videos"], metrics["chance_unseen_pairs"]) == (2, 1 / 2)
    again = score_zero_shot(load(tmp_path / "run"), "again", *read_list(unseen), EvalConfig(loading=Loading(workers=0)))
    assert metrics["top1_zero_shot"] == again["top1"]
    assert metrics["top1_unseen_pairs"] == again["unseen"]["top1"]
    unseen.write_text("TaiChi/v.avi\n")
    assert main([*arguments, "--data.unseen", str(unseen), "--out", str(tmp_path / "refused")]) == 1
    assert f"{unseen}: every video is of a class that is trained on" in capsys.readouterr().err


def test_names_of_classes_stay_as_they_are(write_video: VideoWriter, tmp_path: Path) -> None:
    """With commas, quotes and letters of other scripts."""
    names = ['going "dark", slowly', "ярче, 明るくなる"]
    arguments = other_dataset(write_video, tmp_path, names=names)
    assert main([*arguments, "--optim.epochs", "1", "--optim.warmup_epochs", "0"]) == 0
    assert alt_fast.load(tmp_path / "run").classes == names
    assert read_classes(tmp_path / "run" / "classes.csv") == names
    assert (tmp_path / "run" / "classes.csv").read_text("utf-8").splitlines()[1:] == [
        '0,"going ""dark"", slowly"',
        '1,"ярче, 明るくなる"',
    ]


def test_a_corpus_by_its_name(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In evaluate and classify as in train, whose default it is."""
    options = ["--checkpoint", str(trained_run), "--corpus", "motion_shapes", "--json"]
    assert evaluate([*options, "--workers", "0"]) == 0
    metrics = json.loads((trained_run / "metrics.json").read_text())
    assert json.loads(capsys.readouterr().out)[0]["top1"] == metrics["top1"]
    assert classify([str(trained_run.parent / "data" / "test" / "00003.webm"), *options]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    units = {entity.unit for entity in Corpus.load("motion_shapes").entities}
    assert {row["entity"] for frame in answer["frames"] for row in frame} <= units


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
    arguments = other_dataset(write_video, tmp_path)
    assert main([*arguments, "--data.root", str(tmp_path / "elsewhere"), "--data.max_bad_share", "1"]) == 1
    assert "none of the 24 videos of data.train is there (24 no such file)" in capsys.readouterr().err


def test_a_list_without_a_single_video_stops_the_run(
    write_video: VideoWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*other_dataset(write_video, tmp_path, bad=24), "--data.max_bad_share", "1"]) == 1
    assert "video after video cannot be used, the last " in capsys.readouterr().err


def test_quarantine_remembers_across_restarts(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path, 100, 0.01).add([Failure("a.mp4", "empty"), Failure("a.mp4", "empty")])
    again = Quarantine(path, 100, 0.01)
    again.add([Failure("a.mp4", "empty")])
    assert len(path.read_text().splitlines()) == 1
    with pytest.raises(RunError, match="2 of 100"):
        again.add([Failure("b.mp4", "empty")])
    mended = Quarantine(path, 100, 0.01)
    mended.add([])
    mended.add([Failure("b.mp4", "empty")])  # a.mp4 is not met again


def test_one_bad_video_stops_no_run_unless_none_is_allowed(tmp_path: Path) -> None:
    path, failure = tmp_path / "quarantine.jsonl", Failure("a.mp4", "empty")
    Quarantine(path, 10, 0.01).add([failure])
    with pytest.raises(RunError, match="1 of 10"):
        Quarantine(path, 10, 0).add([failure])


def test_quarantine_names_twenty_videos_and_lists_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path, 100, 1).add([Failure(f"{i}.mp4", "empty") for i in range(30)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[19:] == [
        "quarantined 19.mp4: empty",
        f"more than 20 videos are quarantined: the others are listed in {path}",
    ]
    assert len(path.read_text().splitlines()) == 30


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--data.generate", "null"], 1, "name the videos"),
        (["--corpus", "null"], 1, "name the text corpus"),
        (["--corpus", "/nowhere.json"], 1, "cannot read corpus /nowhere.json"),
        (["--optim.batch_size", "500"], 1, "optim.batch_size 500 is more than the 36 training videos"),
        (["--device", "cuda:9"], 2, "device 'cuda:9' was asked for"),
        (["--pretrain", "null", "--model.pretrained", "nonsense"], 1, "neither a file nor a tag"),
    ],
)
def test_bad_settings(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, message: str
) -> None:
    if options[0] == "--device" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA devices")
    assert main([*job(trained_run, tmp_path), *options]) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optim.epochs", "0"], "epochs must be >= 1"),
        (["--optim.clip_grad", "0"], "clip_grad must be > 0, or null for none, got 0"),
        (["--optim.label_smoothing", "1.5"], "label_smoothing must be in [0, 1], got 1.5"),
        (["--optim.mix_switch", "5"], "mix_switch must be in [0, 1], got 5.0"),
        (["--optim.mix_switch", "-1"], "mix_switch must be >= 0, got -1.0"),
        (["--optim.accumulate", "5"], "accumulate must divide batch_size"),
        (["--optim.warmup_epochs", "9"], "warmup_epochs must be in"),
        (["--optim.mixup", "0.8", "--optim.batch_size", "9"], "must be even"),
        (["--model.tuning", "half"], "half"),
        (["--no.such", "1"], "no.such"),
        (["--checkpoint_every", "0"], "checkpoint_every must be >= 1"),
        (["--eval_every", "-1"], "eval_every must be >= 0"),
        (["--keep", "0"], "keep must be >= 1, got 0"),
        (["--optim.ema", "1"], "ema must be in [0, 1), got 1.0"),
        (["--optim.scale_from", "0"], "scale_from must be >= 1, got 0"),
        (["--start_from", "runs/a"], "start_from has all weights: set pretrain and model.pretrained to null"),
        (
            ["--start_from", "runs/a", "--pretrain", "null", "--frame_only", "true", "--model.query", "learned"],
            "frame_only trains a model of one frame from start_from's weights, whose learned queries",
        ),
    ],
)
def test_bad_options(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    """Whoever finds the fault, the parser or the settings themselves."""
    try:
        status = main([*SMALL_JOB, *options])
    except SystemExit as e:
        status = int(e.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err


def test_the_default_job_keeps_the_tower_that_comes_along(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither it nor a CLIP of its own is trained, and the card says so."""
    assert parse([]).pretrain is None
    shapes = SMALL_JOB[SMALL_JOB.index("--data.shapes.train_per_class") : SMALL_JOB.index("--pretrain.steps")]
    short = ["--optim.epochs", "1", "--optim.warmup_epochs", "0", "--frame_only", "false"]
    run = tmp_path / "run"
    assert main([*shapes, *short, "--data.root", str(trained_run.parent / "data"), "--out", str(run)]) == 0
    assert "learning rates 0.001, image tower frozen" in capsys.readouterr().out
    assert not (run / "clip.safetensors").exists()
    assert "clip" not in json.loads((run / "metrics.json").read_text())["stage_seconds"]
    assert "starting from the tiny CLIP `motion_shapes` that comes along" in (run / "README.md").read_text()
    assert "image tower frozen" in (run / "README.md").read_text()
    trained = load_file(run / "model.safetensors")
    tower = build_clip("tiny", "motion_shapes", None).visual.state_dict()
    assert all(torch.equal(trained[f"encoder.visual.{name}"], weight) for name, weight in tower.items())


def test_pretraining_goes_on_from_weights(trained_run: Path, tmp_path: Path) -> None:
    start = trained_run / "clip.safetensors"
    more = ["--model.pretrained", str(start), "--pretrain.steps", "1", "--frame_only", "false"]
    assert main([*job(trained_run, tmp_path), *more, "--optim.epochs", "1", "--optim.warmup_epochs", "0"]) == 0
    before, after = load_file(start), load_file(tmp_path / "run" / "clip.safetensors")
    moved = [(after[name] - value).abs().max() for name, value in before.items() if value.is_floating_point()]
    assert 0 < max(moved) < 0.02  # one step of 2e-3, from there


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 3\noptim:\n", "optim must hold settings, got nothing: leave it out"),  # commented out, say
        ("seed: 3\ndata:\n  shapes:\n", "data.shapes must hold settings, got nothing: leave it out"),
        ("optim: 5\n", "optim must hold settings, got 5"),
        ("data:\n  shapes: [1]\n", "data.shapes must hold settings, got [1]"),
    ],
)
def test_what_is_no_section_of_settings_is_named(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SystemExit):
        parse(["--config", "motion_shapes_2", "--config", str(tmp_path / "mine.yaml")])
    assert said in capsys.readouterr().err


def test_a_section_of_nothing_but_options_has_them(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("seed: 3\ndata:\n")
    mine = parse(["--config", str(tmp_path / "mine.yaml"), "--data.train=x.csv"])
    assert (mine.seed, mine.data.train, mine.data.shapes) == (3, "x.csv", MotionShapesConfig())


def settings(cls: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The options of a dataclass and of those within it, each with the line of the docstring that explains it."""
    for field, kind in get_type_hints(cls).items():
        name = f"{prefix}{field.replace('_', '-')}"
        if is_dataclass(kind) and isinstance(kind, type):
            yield from settings(kind, f"{name}.")
        else:
            explained = re.search(rf"^        {field}: (.+)$", cls.__doc__ or "", re.MULTILINE)
            assert explained, f"{cls.__name__} does not explain {field}"
            yield name, explained[1]


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    options = [*settings(TrainConfig)]
    assert len(options) > 70
    for name, explained in options:
        assert f" --{name} " in text
        assert explained in text, name
    assert "go on with the run in `out` from its last checkpoint" in text


def test_auto_picks_a_device() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ArgumentError, match="device must be .*, got 'toaster'"):
        pick_device("toaster")


def test_processes_share_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "3")
    for device, number, message in (
        ("cuda:1", 0, "device 'cuda:1' is one GPU, and torchrun's processes take one each: ask for cuda"),
        ("auto", 2, "process 3 of this machine has no GPU of its own: this PyTorch sees 2, which is the most"),
    ):
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setenv("LOCAL_RANK", str(number))
        with pytest.raises(ArgumentError, match=message), join_world(device):
            pass
