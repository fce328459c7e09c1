"""The folder of a run: what it was started with, and where it ran."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

import alt_fast
from alt_fast.errors import RunError
from alt_fast.files import (
    CONFIG,
    ENVIRONMENT,
    differences,
    make_folder,
    read_json,
    read_yaml,
    sole_writer,
    write_json,
    write_text,
)
from alt_fast.training.config import TrainConfig

_PRACTICAL = ("out", "resume", "device", "checkpoint_every", "keep")
"""Where a run lies, how it is called and what it leaves may change; anything else would change its result."""


@contextmanager
def open_run_folder(config: TrainConfig, restarted: bool = False) -> Iterator[Path]:
    """Create the run folder with config.yaml and environment.json, or check that it is this run's to go on with.

    restarted: whether torchrun started the processes anew, so that the run is gone on with if it is of this launch.
    Inside, no other process can open it. Raises RunError.
    """
    if config.out is None and config.resume:
        raise RunError("--resume needs --out: the folder of the run to go on with")
    folder = Path("runs") / time.strftime("%Y%m%d-%H%M%S") if config.out is None else Path(config.out)
    recorded = folder / CONFIG
    if recorded.exists() and not config.resume and not (restarted and _is_of_this_launch(folder)):
        raise RunError(f"{folder} holds a run already: add --resume to go on with it, or choose another --out")
    make_folder(folder)
    with sole_writer(folder):
        settings = {name: value for name, value in asdict(config).items() if name not in _PRACTICAL}
        settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
        if recorded.exists():
            before = read_yaml(recorded, "data", "optim")
            changed = differences(_deciding(before), _deciding(settings))
            if changed:
                raise RunError(f"{folder} was started with other settings: {'; '.join(changed)}")
        else:
            write_json(folder / ENVIRONMENT, describe_environment())
            write_text(recorded, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        yield folder


def _is_of_this_launch(folder: Path) -> bool:
    return read_json(folder / ENVIRONMENT, "launch")["launch"] == os.environ.get("TORCHELASTIC_RUN_ID")


def _deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without those that another machine may want otherwise, and that change no result."""
    data = {name: value for name, value in settings["data"].items() if name not in ("workers", "timeout")}
    # More processes want fewer parts. Together they make the parts that mixup draws its pairs in.
    optim = {name: value for name, value in settings["optim"].items() if name != "accumulate"}
    return settings | {"data": data, "optim": optim}


def describe_environment() -> dict[str, Any]:
    """Return what a result depends on besides the configuration."""
    packages = ("open-clip-torch", "timm", "av", "numpy")
    return {
        "command": sys.argv,
        "launch": os.environ.get("TORCHELASTIC_RUN_ID"),
        "alt_fast": alt_fast.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {"torch": torch.__version__} | {name: version(name) for name in packages},  # torch names its build
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _commit() -> str | None:
    """Return the commit of this code, when it runs from a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie in somebody else's checkout
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None
