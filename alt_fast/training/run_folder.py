"""The folder of a run: what it was started with, and where it ran."""

import hashlib
import json
import os
import platform
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
from alt_fast.checkout import find_checkout
from alt_fast.corpus import Corpus
from alt_fast.distributed import World
from alt_fast.errors import RunError
from alt_fast.files import (
    BEST_RECORD,
    CARD,
    CLASSES,
    CONFIG,
    ENVIRONMENT,
    LISTS,
    LOG,
    METRICS,
    MISSING,
    QUARANTINE,
    WEIGHTS,
    differences,
    make_folder,
    read_json,
    read_yaml,
    sole_writer,
    text_of,
    write_json,
    write_text,
)
from alt_fast.progress import print_line
from alt_fast.training.config import TrainConfig
from alt_fast.training.job import Lists

_PRACTICAL = ("out", "resume", "device", "checkpoint_every", "keep")
"""Where a run lies, how it is called and what it leaves may change; anything else would change its result."""

_PRACTICAL_DATA = ("workers", "timeout", "max_bad_share")

_PARTS = "processes x optim.accumulate"
"""The parts that a batch is made of: Mixup pairs clips, and eq. 4 draws its noise, within one."""

_OF_A_BEGINNING = (CONFIG, ENVIRONMENT, CLASSES, *LISTS.values(), MISSING, QUARANTINE, LOG)
"""What a run that has kept no step of training may have left."""

_OF_TRAINING = ("*.state", "*.safetensors", METRICS, BEST_RECORD)
"""What only a run that has kept a step leaves; weights may have been moved away."""

_OF_A_RUN = (*_OF_A_BEGINNING, *_OF_TRAINING, CARD)
"""What a run writes, and would overwrite where it is somebody else's."""


@contextmanager
def open_run_folder(config: TrainConfig, world: World | None = None) -> Iterator[Path]:
    """Create the run folder with config.yaml and environment.json, or check that it is this run's to go on with.

    A run that has kept no step of training, as after a mistake in its settings, is begun anew. Where torchrun started
    the processes anew, a run of this launch is gone on with; without --out too. world: the processes of the job.
    Inside, no other process can open the folder. Raises RunError.
    """
    world = world or World()
    if config.out is None and config.resume:
        raise RunError("--resume needs --out: the folder of the run to go on with")
    folder = _default_folder(world) if config.out is None else Path(config.out)
    make_folder(folder)
    with sole_writer(folder):
        settings = _settings(config)
        if not _goes_on(folder, settings, config.resume, world):
            parts = world.size * config.optim.accumulate
            write_json(folder / ENVIRONMENT, describe_environment() | {"launch": world.launch, _PARTS: parts})
            try:
                write_text(folder / CONFIG, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
            except BaseException:
                (folder / ENVIRONMENT).unlink()  # without the other it would be somebody else's
                raise
        yield folder


def has_result(folder: Path, config: TrainConfig) -> bool:
    """Return whether a run has ended. Raises RunError for one of other settings, of those that change its result."""
    if not (folder / METRICS).exists():
        return False
    if changed := _changes(folder, _settings(config)):
        raise RunError(f"{folder} was trained with other settings: {'; '.join(changed)}. Choose another folder")
    return True


def check_same_inputs(folder: Path, config: TrainConfig, lists: Lists, corpus: Corpus | None) -> None:
    """Record what a run is made from, or check that it is what it was when it was started: the files may be others.

    Its lists, its corpus, the weights that it starts from. And where the run is and was started: relative paths of its
    settings start there. Raises RunError.
    """
    parts = {"train": lists.train, "test": lists.test, "unseen": lists.unseen}
    held = {name: text_of([f"{video.path} {video.label}" for video in videos]) for name, videos in parts.items()}
    held |= {"classes": text_of(lists.classes), "unseen_classes": text_of(lists.unseen_classes)}
    environment = read_json(folder / ENVIRONMENT)
    changed = differences(environment.setdefault("lists", held), held, "data")
    if changed:
        raise RunError(f"{folder} was started with other lists: {'; '.join(changed)}. Choose another --out")
    texts = [] if corpus is None else [f"{entity.category} {entity.text}" for entity in corpus.entities]
    read = {"corpus": text_of(texts)}
    for name, given in (("start_from", config.start_from), ("model.pretrained", config.model.pretrained)):
        if given is not None:
            path = Path(given) / WEIGHTS if Path(given).is_dir() else Path(given)
            read[name] = _hash(path) if path.is_file() else f"no file {given}"  # a tag of open_clip is none
    changed = differences(environment.setdefault("read", read), read)
    if changed:
        raise RunError(f"{folder} was started from other files: {'; '.join(changed)}. Choose another --out")
    write_json(folder / ENVIRONMENT, environment | {"started_in": os.getcwd(), "run": str(folder.resolve())})


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _changes(folder: Path, settings: dict[str, Any]) -> list[str]:
    return differences(_deciding(read_yaml(folder / CONFIG, "data", "optim")), _deciding(settings))


def _settings(config: TrainConfig) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(config).items() if name not in _PRACTICAL}
    return dict(json.loads(json.dumps(settings)))  # tuples become lists, as in the file


def _default_folder(world: World) -> Path:
    """A new folder under runs/, or where torchrun started the processes anew the one that they had. Raises RunError."""
    if world.restarts:
        if world.launch == "none":
            raise RunError(
                "torchrun started the processes anew, and nothing tells which folder under runs/ they had: name it "
                "with --out, or give torchrun an --rdzv-id"
            )
        for run in sorted(Path("runs").glob("[0-9]*-[0-9]*"), reverse=True):  # the newest first
            if _is_of_this_launch(run, world):
                return run
    return Path("runs") / time.strftime("%Y%m%d-%H%M%S")


def _goes_on(folder: Path, settings: dict[str, Any], resume: bool, world: World) -> bool:
    """Whether there is a run to go on with; what one without a step has left is removed. Raises RunError."""
    recorded = folder / CONFIG
    if not recorded.exists():
        strange = [path.name for kind in _OF_A_RUN for path in folder.glob(kind)]
        if strange:
            raise RunError(f"{folder} holds {strange[0]}, and no run that it is of: choose another --out")
        return False
    ours = (folder / ENVIRONMENT).exists()  # else somebody else's config.yaml, which stays
    trained = not ours or any(path for kind in _OF_TRAINING for path in folder.glob(kind))
    if trained:
        if not resume and not (world.restarts > 0 and _is_of_this_launch(folder, world)):
            raise RunError(f"{folder} holds a run already: add --resume to go on with it, or choose another --out")
        if changed := _changes(folder, settings) + _changed_parts(folder, settings, world):
            raise RunError(f"{folder} was started with other settings: {'; '.join(changed)}")
        return True
    given = [Path(value) for value in settings["data"].values() if isinstance(value, str)]
    needed = {place for path in given for place in (path.resolve(), path.parent.resolve() / path.name)}
    for left in (folder.resolve() / name for name in _OF_A_BEGINNING):
        if left not in needed:
            left.unlink(missing_ok=True)
    return False


def _changed_parts(folder: Path, settings: dict[str, Any], world: World) -> list[str]:
    """What changed in the parts of a batch; a sharded run may go on with others, and it is said."""
    now = world.size * settings["optim"]["accumulate"]
    before = read_json(folder / ENVIRONMENT).get(_PARTS, now) if (folder / ENVIRONMENT).exists() else now
    changed = differences(before, now, _PARTS)
    if changed and settings["optim"]["sharded"]:
        print_line(f"{changed[0]}: pairs of mixup and noise are not those of the run before")
        return []
    return changed


def _is_of_this_launch(folder: Path, world: World) -> bool:
    recorded = folder / ENVIRONMENT
    return recorded.exists() and read_json(recorded).get("launch") == world.launch


def _deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without those that change no result: another machine's, and what a run stops at."""
    data = {name: value for name, value in settings["data"].items() if name not in _PRACTICAL_DATA}
    # More processes want fewer parts each: `_PARTS` decides.
    optim = {name: value for name, value in settings["optim"].items() if name not in ("accumulate", "max_skipped")}
    return settings | {"data": data, "optim": optim}


def describe_environment() -> dict[str, Any]:
    """Return what a result depends on besides the configuration."""
    packages = ("open-clip-torch", "timm", "av", "numpy")
    checkout = find_checkout()
    return {
        "command": sys.argv,
        "alt_fast": alt_fast.__version__,
        "commit": None if checkout is None else checkout.commit,
        "uncommitted_changes": None if checkout is None else checkout.changed,
        "python": platform.python_version(),
        "packages": {"torch": torch.__version__} | {name: version(name) for name in packages},  # torch names its build
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
