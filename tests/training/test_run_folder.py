"""Whose a run folder is: of this launch of torchrun, of a run that has been trained, of other settings."""

import json
from pathlib import Path

import pytest

from alt_fast.corpus import Corpus, Entity
from alt_fast.distributed import World
from alt_fast.errors import FileError, RunError
from alt_fast.inference.trained import TrainedModel
from alt_fast.training import run
from alt_fast.training.config import DataConfig, OptimConfig, TrainConfig
from alt_fast.training.job import Lists
from alt_fast.training.run_folder import check_same_inputs, open_run_folder


@pytest.fixture
def torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Torchrun":
    monkeypatch.chdir(tmp_path)
    return Torchrun(monkeypatch)


class Torchrun:
    """Sets what torchrun tells its processes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch

    def start(self, launch: str, attempt: int, name: str = "none") -> None:
        """launch: the folder of its logs. name: its --rdzv-id, "none" by default."""
        self.patch.setenv("TORCHELASTIC_RUN_ID", name)
        self.patch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        self.patch.setenv("TORCHELASTIC_ERROR_FILE", launch and f"/tmp/logs/{launch}/attempt_{attempt}/0/error.json")


def open_at(time: str, config: TrainConfig, patch: pytest.MonkeyPatch) -> Path:
    """Open the folder of a run as if it were that time; the run keeps a step."""
    patch.setattr("alt_fast.training.run_folder.time.strftime", lambda form: time)
    with open_run_folder(config) as folder:
        (folder / "alt-00000001.state").touch()
    return folder


@pytest.mark.parametrize("name", ["none", "mine"])
def test_processes_that_are_started_anew_find_their_folder(name: str, torchrun: Torchrun) -> None:
    """Without --out, beside a newer one of another launch; another launch begins a new one, or names what is there."""
    torchrun.start("none_a", 0, name)
    first = open_at("20261201-100000", TrainConfig(), torchrun.patch)
    torchrun.start("none_b", 0, "none" if name == "none" else "other")
    other = open_at("20261201-110000", TrainConfig(), torchrun.patch)
    torchrun.start("none_a", 1, name)
    assert open_at("20261201-120000", TrainConfig(), torchrun.patch) == first
    torchrun.start("none_c", 1, "none" if name == "none" else "third")
    third = open_at("20261201-130000", TrainConfig(), torchrun.patch)
    assert sorted(Path("runs").iterdir()) == [first, other, third]
    with pytest.raises(RunError, match="holds a run already"), open_run_folder(TrainConfig(out=str(first))):
        pass


def test_processes_whose_launch_has_no_name_find_their_folder_by_out_alone(torchrun: Torchrun) -> None:
    """As with --log-dir /dev/null."""
    torchrun.start("", 0)
    open_at("20261201-100000", TrainConfig(), torchrun.patch)
    torchrun.start("", 1)
    with pytest.raises(RunError, match="nothing tells which folder under runs/ they had"):
        open_at("20261201-110000", TrainConfig(), torchrun.patch)
    open_at("", TrainConfig(out="runs/20261201-100000"), torchrun.patch)
    assert len(list(Path("runs").iterdir())) == 1


@pytest.mark.parametrize("left", ["metrics.json", "best.json"])
def test_a_run_whose_weights_were_moved_away_is_not_begun_anew(left: str, tmp_path: Path) -> None:
    config = TrainConfig(out=str(tmp_path / "run"))
    with open_run_folder(config) as folder:
        for name in ("log.jsonl", "train.csv", left):
            (folder / name).touch()
    before = sorted(folder.iterdir())
    with pytest.raises(RunError, match="holds a run already: add --resume"), open_run_folder(config):
        pass
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("name", ["README.md", "environment.json", "model.safetensors", "alt-00000009.state"])
def test_nobody_else_s_files_are_overwritten_or_gone_on_with(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    for resume in (False, True):
        config = TrainConfig(out=str(tmp_path), resume=resume)
        with pytest.raises(RunError, match=f"holds {name}, and no run that it is of"), open_run_folder(config):
            pass
    assert (tmp_path / name).read_text() == "mine"


def test_a_run_that_has_kept_no_step_makes_its_lists_anew(tmp_path: Path) -> None:
    """Resumed or not: more videos may have come since."""
    for resume in (False, True, True):
        with open_run_folder(TrainConfig(out=str(tmp_path / "run"), resume=resume)) as folder:
            assert not (folder / "train.csv").exists()
            (folder / "train.csv").touch()
    (folder / "alt-00000001.state").touch()
    with open_run_folder(TrainConfig(out=str(folder), resume=True)):
        assert (folder / "train.csv").exists()


def test_a_run_goes_on_from_the_files_that_it_was_started_from(tmp_path: Path) -> None:
    """Under the same names there may be others: of the corpus, and of weights."""
    start, corpus = tmp_path / "start", Corpus((Entity("bow", "a weapon", "objects"),))
    start.mkdir()
    (start / "model.safetensors").write_bytes(b"one")
    config, lists = TrainConfig(out=str(tmp_path / "run"), start_from=str(start)), Lists([], [], [], [], [])
    with open_run_folder(config) as folder:
        check_same_inputs(folder, config, lists, corpus)
        check_same_inputs(folder, config, lists, corpus)
        other = Corpus((Entity("bow", "a knot", "objects"),))
        with pytest.raises(RunError, match=r"was started from other files: corpus was '1 \(.*Choose another --out"):
            check_same_inputs(folder, config, lists, other)
        (start / "model.safetensors").write_bytes(b"two")
        with pytest.raises(RunError, match="was started from other files: start_from was '"):
            check_same_inputs(folder, config, lists, corpus)
        (start / "model.safetensors").unlink()
        with pytest.raises(RunError, match="start_from was '.*', now 'no file "):
            check_same_inputs(folder, config, lists, corpus)


def test_weights_to_start_from_may_be_a_file(tmp_path: Path) -> None:
    best = tmp_path / "best.safetensors"
    best.write_bytes(b"one")
    config, lists = TrainConfig(out=str(tmp_path / "run"), start_from=str(best)), Lists([], [], [], [], [])
    with open_run_folder(config) as folder:
        check_same_inputs(folder, config, lists, None)
        best.write_bytes(b"two")
        with pytest.raises(RunError, match="was started from other files: start_from was '"):
            check_same_inputs(folder, config, lists, None)


def test_a_folder_whose_first_files_could_not_be_written_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise FileError("cannot write: no space left")

    config = TrainConfig(out=str(tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr("alt_fast.training.run_folder.write_text", full)
        with pytest.raises(FileError, match="no space left"), open_run_folder(config):
            pass
    with open_run_folder(config):
        pass


def test_the_best_weights_are_kept_again_where_they_were_moved_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "save_model", lambda path, trained: path.touch())
    trained = TrainedModel.__new__(TrainedModel)
    run.keep_best(tmp_path, trained, 1, 0.5)
    run.keep_best(tmp_path, trained, 2, 0.25)
    assert json.loads((tmp_path / "best.json").read_text())["epoch"] == 1
    (tmp_path / "best.safetensors").unlink()
    run.keep_best(tmp_path, trained, 3, 0.125)
    assert (tmp_path / "best.safetensors").exists()
    assert json.loads((tmp_path / "best.json").read_text())["epoch"] == 3


@pytest.mark.parametrize("given", ["real/run/train.csv", "link/run/train.csv", "other/../real/run/train.csv", "list"])
def test_a_list_that_is_to_be_read_stays_whatever_its_name(given: str, tmp_path: Path) -> None:
    """Where the run's folder, or the list, is named through a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "list").symlink_to("real/run/train.csv")
    for out in "link", "real":
        config = TrainConfig(out=str(tmp_path / out / "run"), data=DataConfig(train=str(tmp_path / given)))
        with open_run_folder(config) as folder:
            (folder / "train.csv").write_text("made")
            (folder / "test.csv").write_text("made")
        with open_run_folder(config):
            assert (folder / "train.csv").read_text() == "made"
            assert not (folder / "test.csv").exists()


def open_parts(folder: Path, processes: int, accumulate: int, sharded: bool = False) -> None:
    optim = OptimConfig(accumulate=accumulate, sharded=sharded)
    with open_run_folder(TrainConfig(out=str(folder), resume=True, optim=optim), World(size=processes)):
        pass


def test_a_run_goes_on_in_as_many_parts_of_a_batch(tmp_path: Path) -> None:
    """They decide its mixup pairs and noise. A run that has kept no step, or did not record them, goes on."""
    open_parts(tmp_path, 8, 1)
    open_parts(tmp_path, 4, 1)  # begun anew
    (tmp_path / "alt-00000001.state").touch()
    for processes, accumulate in (1, 4), (2, 2), (4, 1):
        open_parts(tmp_path, processes, accumulate)
    message = "was started with other settings: processes x optim.accumulate was 4, now 8"
    for processes, accumulate in (8, 1), (4, 2):
        with pytest.raises(RunError, match=message):
            open_parts(tmp_path, processes, accumulate)
    recorded = json.loads((tmp_path / "environment.json").read_text())
    del recorded["processes x optim.accumulate"]
    (tmp_path / "environment.json").write_text(json.dumps(recorded))
    open_parts(tmp_path, 8, 1)


def test_a_sharded_run_goes_on_in_any_number_of_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_parts(tmp_path, 8, 1, sharded=True)
    open_parts(tmp_path, 4, 1, sharded=True)  # begun anew
    (tmp_path / "alt-00000001.state").touch()
    open_parts(tmp_path, 2, 2, sharded=True)
    assert capsys.readouterr().out == ""
    open_parts(tmp_path, 8, 1, sharded=True)
    said = "processes x optim.accumulate was 4, now 8: pairs of mixup and noise are not those of the run before\n"
    assert capsys.readouterr().out == said
