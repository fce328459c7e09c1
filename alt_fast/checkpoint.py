"""Files that hold weights and training state; each appears whole or not at all, and loading runs no code from it."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from alt_fast.corpus import Corpus, Entity
from alt_fast.data.augment import AugmentConfig
from alt_fast.data.dataset import ClipSpec
from alt_fast.model import ALT, ModelConfig

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names file and cause."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary name beside `path`, flush to disk, then rename.

    Raises CheckpointError when the disk is full or the like; what was at `path` before is there still.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # safetensors makes files that only their owner can read
        write(partial)
        partial.chmod(mode)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError, SafetensorError) as e:  # torch.save raises RuntimeError on a full disk
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {e}") from e


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON, atomically."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write training state: tensors, numbers, strings and containers of them."""
    write_atomically(path, lambda partial: torch.save(dict(state), partial))


def load_state(path: Path) -> dict[str, Any]:
    """Read `save_state`'s file. Raises CheckpointError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged file fails in many ways
        raise CheckpointError(f"cannot read training state {path}: {e}") from e
    check_version(path, state.get("version") if isinstance(state, dict) else None)
    return state


def save_module(path: Path, module: nn.Module, metadata: Mapping[str, str] | None = None) -> None:
    """Write a module's weights as safetensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    write_atomically(path, lambda partial: save_file(tensors, partial, metadata=dict(metadata or {})))


@dataclass(frozen=True)
class TrainedModel:
    """A model with what it takes to use it.

    classes: names that it was trained on. templates: prompts for class names. augment: how its test clips are cropped
    and normalised.
    """

    model: ALT
    classes: list[str]
    templates: list[str]
    augment: AugmentConfig

    @property
    def spec(self) -> ClipSpec:
        """What its clips look like."""
        return ClipSpec(self.model.config.frames, self.model.image_size, self.augment)


def save_model(path: Path, trained: TrainedModel) -> None:
    """Write weights with everything needed to use them: one safetensors file."""
    corpus = trained.model.corpus
    content = {
        "model": asdict(replace(trained.model.config, pretrained=None)),
        "classes": trained.classes,
        "templates": trained.templates,
        "augment": asdict(trained.augment),
        "corpus": None if corpus is None else [asdict(entity) for entity in corpus.entities],
    }
    metadata = {"format": "alt-fast", "version": str(FORMAT_VERSION), "content": json.dumps(content)}
    save_module(path, trained.model, metadata)


def load(path: str | Path) -> TrainedModel:
    """Read `save_model`'s file, or the one in a run folder. Raises CheckpointError naming file and cause."""
    path = Path(path)
    if path.is_dir():
        if not (path / WEIGHTS).exists():
            unfinished = any(path.glob("*.state"))
            hint = (
                f"its training has not finished: train with --output {path} --resume"
                if unfinished
                else "not a run folder"
            )
            raise CheckpointError(f"{path} holds no {WEIGHTS}: {hint}")
        path = path / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != "alt-fast":
            raise CheckpointError(f"{path} is a safetensors file, but not a model of alt-fast")
        check_version(path, metadata.get("version"))
        content = json.loads(metadata["content"])
        weights = load_file(path)
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"cannot read checkpoint {path}: {e}") from e
    corpus = content["corpus"] and Corpus(tuple(Entity(**entity) for entity in content["corpus"]))
    try:
        model = ALT(ModelConfig(**content["model"]), corpus)
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError) as e:
        raise CheckpointError(f"{path} does not fit the model it names: {e}") from e
    return TrainedModel(model.eval(), content["classes"], content["templates"], AugmentConfig(**content["augment"]))


_FREE = ("pretrained", "frames", "r", "tau", "noise", "categories")  # settings of a model that its weights do not know


def load_weights(model: ALT, path: str | Path) -> None:
    """Give `model` the weights of a trained one, whose corpus may be another. Raises CheckpointError."""
    trained = load(path).model
    before, now = asdict(trained.config), asdict(model.config)
    fixed = [name for name in now if name not in _FREE]
    changed = [f"model.{k} is {before[k]!r} there, {now[k]!r} here" for k in fixed if before[k] != now[k]]
    if changed:
        raise CheckpointError(f"{path} is another kind of model: {'; '.join(changed)}")
    weights = trained.state_dict() | {"alignment.entities": model.alignment.entities}
    try:
        model.load_state_dict(weights)
    except RuntimeError as e:
        raise CheckpointError(f"the weights of {path} do not fit: {e}") from e


def check_version(path: Path, version: object) -> None:
    """Raises CheckpointError for a file of another release's format."""
    if str(version) != str(FORMAT_VERSION):
        raise CheckpointError(f"{path} has checkpoint version {version}; this release reads version {FORMAT_VERSION}")
