"""The folder of a run: what it was started with, where it ran, and which videos it could not use."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

import alt_fast
from alt_fast.checkpoint import write_atomically, write_json
from alt_fast.config import TrainConfig
from alt_fast.data.loader import Failure

CONFIG, ENVIRONMENT, METRICS, LOG = "config.yaml", "environment.json", "metrics.json", "log.jsonl"
_PRACTICAL = ("output", "resume", "device", "checkpoint_every", "keep")
"""Where a run lies, how it is called and what it leaves may change; anything else would change its result."""


class RunError(RuntimeError):
    """A run that cannot start or go on; the message says why and what to do."""


def open_run_folder(config: TrainConfig) -> Path:
    """Create the run folder with config.yaml and environment.json, or check that it is this run's to go on with."""
    if config.output is None:
        if config.resume:
            raise RunError("--resume needs --output: the folder of the run to go on with")
        folder = Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    else:
        folder = Path(config.output)
    recorded = folder / CONFIG
    settings = {k: v for k, v in asdict(config).items() if k not in _PRACTICAL}
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    if recorded.exists():
        if not config.resume:
            raise RunError(f"{folder} holds a run already: add --resume to go on with it, or choose another --output")
        changed = differences(_deciding(yaml.safe_load(recorded.read_text())), _deciding(settings))
        if changed:
            raise RunError(f"{folder} was started with other settings: {'; '.join(changed)}")
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ENVIRONMENT, describe_environment())
    text = yaml.safe_dump(settings, sort_keys=False)
    write_atomically(recorded, lambda partial: partial.write_text(text))
    return folder


def _deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that another machine may want otherwise, and that change no result."""
    data = {name: value for name, value in settings["data"].items() if name not in ("workers", "timeout")}
    # More processes want fewer parts. Together they make the parts that mixup draws its pairs in.
    optim = {name: value for name, value in settings["optim"].items() if name != "accumulate"}
    return settings | {"data": data, "optim": optim}


def differences(before: Any, now: Any, key: str = "") -> list[str]:
    """Settings that changed, as text, by their dotted names."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted(before.keys() | now.keys())
        return [d for name in names for d in differences(before.get(name), now.get(name), f"{key}.{name}".strip("."))]
    return [] if before == now else [f"{key} was {before!r}, now {now!r}"]


def describe_environment() -> dict[str, Any]:
    """What a result depends on besides the configuration."""
    packages = ("torch", "open-clip-torch", "timm", "av", "numpy")
    return {
        "command": sys.argv,
        "alt_fast": alt_fast.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _commit() -> str | None:
    """The commit of this code, when it runs from a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie in somebody else's checkout
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is a GPU. Raises RunError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RunError(f"device {name!r} was asked for, but this PyTorch sees no GPU")
    try:
        return torch.device(name)
    except RuntimeError as e:
        raise RunError(f"device {name!r} is no device of PyTorch's, such as cpu, cuda or cuda:1") from e


class Quarantine:
    """The videos that could not be used, in a file of one JSON object a line."""

    def __init__(self, path: Path, num_videos: int, max_share: float, writes: bool = True) -> None:
        """writes: whether this process writes the file; all processes of a job have the same causes."""
        self.path, self.num_videos, self.max_share, self.writes = path, num_videos, max_share, writes
        lines = path.read_text().splitlines() if path.exists() else []
        self.causes: dict[str, str] = {entry["path"]: entry["cause"] for entry in map(json.loads, lines)}

    def add(self, failures: Sequence[Failure]) -> None:
        """Record videos not seen before. Raises RunError past the allowed share."""
        for path, cause in failures:
            if path not in self.causes:
                self.causes[path] = cause
                if self.writes:
                    write_atomically(self.path, self._write)
                    say(f"quarantined {path}: {cause}")
        if len(self.causes) > self.max_share * self.num_videos:
            raise RunError(
                f"{len(self.causes)} of {self.num_videos} training videos cannot be used, more than "
                f"data.max_bad_share {self.max_share} allows; they are listed in {self.path}"
            )

    def _write(self, partial: Path) -> None:
        entries = ({"path": path, "cause": cause} for path, cause in self.causes.items())
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def say(message: str) -> None:
    """A line for the person who watches."""
    print(message, flush=True)
