"""The one door: commands, exit statuses, options that mean one thing."""

import argparse
import errno
import subprocess
import sys
from pathlib import Path

import pytest

from alt_fast import cli
from alt_fast.__main__ import COMMANDS, main
from alt_fast.errors import AltFastError, ArgumentError, FileError
from alt_fast.training.config import config_files, parse


def status_of(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    def work(arguments: argparse.Namespace) -> int:
        raise error

    status = cli.run(lambda: cli.make_parser("test", "Test."), work, [], "interrupted; go on with --resume")
    return status, capsys.readouterr().err


def test_our_errors_are_a_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(FileError("no such file: a.csv"), capsys) == (1, "error: no such file: a.csv\n")
    assert status_of(ArgumentError("--r must be >= 0, got -1"), capsys) == (2, "error: --r must be >= 0, got -1\n")
    assert status_of(KeyboardInterrupt(), capsys) == (130, "interrupted; go on with --resume\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "priv/x.csv"), "priv/x.csv: Permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", b"aaa"), "aaa: File name too long"),
        (OSError(errno.EROFS, "Read-only file system", Path("runs/a")), "runs/a: Read-only file system"),
    ],
)
def test_what_a_path_is_to_blame_for_is_a_line(error: OSError, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever it is met: Path.exists() raises where a folder may not be entered, or a name is too long."""
    assert status_of(error, capsys) == (1, f"error: {said}\n")


def test_a_name_that_is_too_long_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "x.mp4", "--checkpoint", "a" * 300]) == 1
    assert capsys.readouterr().err == f"error: {'a' * 300}: File name too long\n"


@pytest.mark.parametrize(
    ("where", "status", "said"), [(">&-", 0, ""), ("> /dev/full", 1, "error: No space left on device\n")]
)
def test_an_output_that_is_closed_or_full(where: str, status: int, said: str) -> None:
    command = f"{sys.executable} -m alt_fast ls configs {where}"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (status, said)


@pytest.mark.parametrize("error", [ValueError("shape mismatch"), RuntimeError("CUDA error"), OSError("pipe")])
def test_other_people_s_errors_keep_their_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """A ValueError of PyTorch's, hours into a training, is no usage error."""
    with pytest.raises(type(error)):
        status_of(error, capsys)


def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    error = ModuleNotFoundError("No module named 'av'", name="av")
    assert status_of(error, capsys) == (1, "error: this needs av: pip install 'alt-fast[video]'\n")
    with pytest.raises(ModuleNotFoundError):
        status_of(ModuleNotFoundError("No module named 'numpy.nonsense'", name="numpy.nonsense"), capsys)


def test_every_error_of_ours_has_one_base() -> None:
    from alt_fast.corpus import CorpusError
    from alt_fast.data.decode import VideoError
    from alt_fast.data.storage import StorageError
    from alt_fast.data.tables import AnnotationError
    from alt_fast.data.workers import LostError
    from alt_fast.model.clip_weights import WeightsError
    from alt_fast.training.loop import DivergedError, TerminatedError

    ours = [CorpusError, AnnotationError, VideoError, StorageError, LostError, WeightsError]
    assert all(issubclass(error, AltFastError) for error in [*ours, DivergedError, TerminatedError])


def test_the_door_lists_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed and what in printed for name, what in COMMANDS.items())
    with pytest.raises(SystemExit) as left:
        main(["tarin"])
    assert left.value.code == 2
    assert "invalid choice: 'tarin'" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_ends_it_quietly() -> None:
    command = f"{sys.executable} -m alt_fast corpus show motion_shapes | head -n 1"
    path = ":".join(path for path in sys.path if path)
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"}
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_a_reader_that_leaves_in_the_middle_ends_it_quietly() -> None:
    script = (
        "import sys; from alt_fast import cli; work = lambda arguments: [print(1, flush=True) for _ in range(10**6)]"
    )
    script += "; sys.exit(cli.run(lambda: cli.make_parser('test', ''), work, []))"
    path = ":".join(path for path in sys.path if path)
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "$1" | head -n 1; echo "${{PIPESTATUS[0]}}"', "bash", script],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"},
    )
    assert (done.stdout, done.stderr) == ("1\n141\n", "")


@pytest.mark.parametrize(
    ("command", "name", "ending"),
    [
        (["explain", "FILE", "--checkpoint", "run"], "out", ".webm"),
        (["visualize", "FILE", "--model", "timm:vit_tiny_patch16_224"], "out", ".png"),
        (["evaluate", "--checkpoint", "run", "--list", "FILE"], "report", ".html"),
        (["judge", "--model", "timm:vit_tiny_patch16_224", "--images", "other.png", "FILE"], "out", ".png"),
        (["judge", "--model", "timm:vit_tiny_patch16_224", "--images", "other.png", "FILE"], "page", ".png"),
        (["data", "browse", "FILE"], "out", ".csv"),
    ],
)
def test_what_is_read_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], name: str, ending: str
) -> None:
    """Under another name neither."""
    file, link = tmp_path / f"file{ending}", tmp_path / f"link{ending}"
    file.write_text("mine")
    link.symlink_to(file)
    for out in (file, link):
        given = [str(file) if word == "FILE" else word for word in command]
        assert main([*given, f"--{name}", str(out)]) == 2
        expected = f"error: --{name} {out} would replace {file}, which is to be read: choose another\n"
        assert capsys.readouterr().err == expected
    assert file.read_text() == "mine"


def test_ls(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls"]) == 0
    printed = capsys.readouterr().out
    for name in ("kinetics400_l14", "tiny", "ViT-B-16", "timm", "pitome"):
        assert f"\n  {name}" in printed
    assert main(["ls", "hosts"]) == 0
    assert "kinetics400" not in capsys.readouterr().out
    assert main(["ls", "everything"]) == 2
    assert "KIND must be any of configs, backbones, hosts, methods" in capsys.readouterr().err


def test_cp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "new" / "mine.yaml"
    assert main(["cp", "kinetics400_b16", str(mine)]) == 0
    assert parse(["--config", str(mine)]) == parse(["--config", "kinetics400_b16"])
    assert main(["cp", "kinetics400_b16", str(mine)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["cp", "kinetics", str(mine)]) == 2
    assert "CONFIG must be one of clips, few_shot_b16, " in capsys.readouterr().err


def test_a_copy_with_the_name_of_a_configuration_is_what_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("motion_shapes", "mine.yaml"):
        assert main(["cp", "kinetics400_b16", name]) == 0
        command = capsys.readouterr().out.split("alt-fast train ")[1].split()
        assert parse(command) == parse(["--config", "kinetics400_b16"])


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help_names_one_gpu_of_several(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "cuda:N" in capsys.readouterr().out


def test_settings_are_spelled_with_hyphens_or_as_in_files() -> None:
    expected = parse(["--eval_every", "3", "--optim.batch_size", "64", "--frame_only", "false", "--out", "runs/a"])
    assert (expected.eval_every, expected.optim.batch_size, expected.frame_only, expected.out) == (
        3,
        64,
        False,
        "runs/a",
    )
    assert parse(["--eval-every=3", "--optim.batch-size", "64", "--frame-only", "false", "--out", "runs/a"]) == expected
    assert parse(["--resume", "--compile"]).compile


@pytest.mark.parametrize("name", list(config_files()))
def test_configurations_are_found_by_name_in_both_spellings(name: str) -> None:
    assert parse([f"--config={name}"]) == parse(["--config", name]) == parse([f"--config={config_files()[name]}"])


def test_options_change_a_configuration_wherever_they_stand() -> None:
    options = ["--optim.epochs", "20"]
    assert parse([*options, "--config", "motion_shapes_2"]) == parse(["--config", "motion_shapes_2", *options])


def test_settings_that_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    from alt_fast.train import main as train

    for options, message in (
        (["--optim.accumulate", "3"], "accumulate must divide batch_size 32, got 3"),
        (["--keep", "0"], "keep must be >= 1, got 0"),
        (["--start-from", "runs/a"], "start_from has all weights"),
        (["--out", ""], "out must name a file or folder, got ''"),
        (["--data.root", ""], "root must name a file or folder, got ''"),
        (["--out", "#1"], "'#1' cannot be told from nothing: a path may begin with ./"),
        (["--data.train=&clips"], "'&clips' cannot be told from nothing"),
    ):
        try:
            status: object = train(options)
        except SystemExit as e:  # jsonargparse reads nested settings while it parses
            status = e.code
        assert status == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"), [("1s", 1), ("500ms", 0.5), ("2 min", 120), ("1.5h", 5400), ("4", 4), (".25s", 0.25)]
)
def test_times(text: str, seconds: float) -> None:
    assert cli.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "0s", "1 day", "1e3s", "nan"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be a time above 0, such as"):
        cli.seconds(text)
