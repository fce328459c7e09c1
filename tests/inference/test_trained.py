"""Files of weights: what they hold, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from alt_fast import Corpus, create_model
from alt_fast.data.annotations import Video
from alt_fast.data.config import AugmentConfig
from alt_fast.data.tables import AnnotationError
from alt_fast.errors import CheckpointError, RunError
from alt_fast.inference.trained import TrainedModel, load, load_weights, save_model
from alt_fast.inference.zero_shot import find_unseen
from alt_fast.model.config import Tuning


@pytest.fixture
def trained(corpus: Corpus) -> TrainedModel:
    torch.manual_seed(0)
    model = create_model("alt_tiny", corpus, frames=2, r=(3, 0.5), categories=["object", "scene"]).eval()
    return TrainedModel(model, ["growing", "shrinking"], ["{}"], AugmentConfig(normalize="clip"))


def test_one_file_holds_everything(trained: TrainedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", trained)
    (tmp_path / "any").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded = load(path)
        assert (loaded.classes, loaded.templates, loaded.augment) == (
            trained.classes,
            trained.templates,
            trained.augment,
        )
        assert loaded.model.corpus == trained.model.corpus
        assert loaded.spec == trained.spec
        video = torch.randn(1, 2, 3, 48, 48)
        classes = trained.model.text.classes(["x", "y"])
        assert torch.equal(loaded.model.text.classes(["x", "y"]), classes)
        assert torch.equal(loaded.model(video, classes).logits, trained.model(video, classes).logits)


def test_a_model_knows_what_its_weights_were_trained_on_before(trained: TrainedModel, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    save_model(paths[0], trained)
    for number, classes in enumerate((["turning"], ["moving", "growing"])):
        later = replace(trained, classes=classes, earlier=[])
        load_weights(later, paths[number])
        save_model(paths[number + 1], later)
    loaded = load(paths[2])
    assert loaded.classes == ["moving", "growing"]
    assert set(loaded.seen_classes) == {"moving", "growing", "turning", "shrinking"}
    with pytest.raises(RunError, match="every video is of a class that is trained on"):
        find_unseen("list", [Video(Path("a.mp4"), 0)], ["Shrinking", "new"], loaded.seen_classes)


@pytest.mark.parametrize("tuning", get_args(Tuning))
def test_loading_draws_no_weights(corpus: Corpus, tuning: Tuning, tmp_path: Path) -> None:
    model = create_model("alt_tiny", corpus, frames=2, tuning=tuning)
    path = tmp_path / "model.safetensors"
    save_model(path, TrainedModel(model, ["growing"], ["{}"], AugmentConfig()))
    before = torch.get_rng_state()
    loaded = load(path).model
    assert torch.equal(torch.get_rng_state(), before)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def rewrite(path: Path, **changes: str) -> None:
    """Change the metadata of a saved model."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, **changes})


def test_files_that_are_refused(trained: TrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, trained)
    rewrite(path, version="7")
    with pytest.raises(CheckpointError, match="checkpoint version 7; this release reads version 1"):
        load(path)
    save_model(path, trained)
    content: dict[str, Any] = {
        "model": {"backbone": "tiny", "frames": 2, "depth": 3, "query": "frame"},
        "classes": [],
        "templates": [],
        "augment": {},
        "corpus": None,
    }
    rewrite(path, content=json.dumps(content))
    with pytest.raises(CheckpointError, match="does not fit the model it names"):
        load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a model of alt-fast"):
        load(path)
    path.write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"cannot read checkpoint .*model\.safetensors"):
        load(path)
    with pytest.raises(CheckpointError, match="cannot read checkpoint"):
        load(tmp_path / "none.safetensors")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match="not a run folder"):
        load(empty)
    (empty / "alt-00000001.state").touch()
    with pytest.raises(CheckpointError, match=r"training has not finished: train with --out .* --resume"):
        load(empty)


def test_texts_describe_classes_from_then_on(trained: TrainedModel, tmp_path: Path) -> None:
    names = trained.embed(["growing", "shrinking"])
    texts = {"Growing!": "growing: it becomes larger"}
    trained.use_texts(texts)
    found = trained.embed(["growing", "shrinking"])
    torch.testing.assert_close(found[0], trained.model.text(["growing: it becomes larger"])[0])
    torch.testing.assert_close(found[1], names[1], rtol=0, atol=1e-6)  # beside a longer text it is rounded otherwise
    trained.use_texts(None)
    assert torch.equal(trained.embed(["growing", "shrinking"]), found)
    save_model(tmp_path / "model.safetensors", trained)
    assert load(tmp_path).texts == {}
    with pytest.raises(AnnotationError, match="texts: class 'turning' is not among the 2 classes"):
        trained.use_texts({"turning": "round"})
    with pytest.raises(AnnotationError, match="texts: class 'Growing!' is not among the 1 classes"):
        trained.use_texts(texts, ["turning"])
    assert torch.equal(trained.embed(["growing", "shrinking"]), found)
    (tmp_path / "texts.csv").write_text("name,text\nturning,turning: round and round\n")
    trained.use_texts(tmp_path / "texts.csv", ["turning"])
    torch.testing.assert_close(trained.embed(["turning"]), trained.model.text(["turning: round and round"]))
    trained.use_texts({})
    assert torch.equal(trained.embed(["growing", "shrinking"]), names)
