"""Whose a run folder is: of this launch of torchrun, of a run that has been trained, of other settings."""

from pathlib import Path

import pytest

from alt_fast.errors import RunError
from alt_fast.training.config import TrainConfig
from alt_fast.training.run_folder import open_run_folder


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
