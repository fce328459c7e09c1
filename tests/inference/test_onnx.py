"""ONNX files: what onnxruntime makes of them is what PyTorch makes of the model, for any number of anything."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from alt_fast.data.augment import MEAN_STD
from alt_fast.errors import ArgumentError, RunError
from alt_fast.export import main
from alt_fast.inference import onnx
from alt_fast.inference.onnx import CLASSES, METADATA, Files, Whole, build, save, to_onnx
from alt_fast.inference.trained import TrainedModel, load
from alt_fast.model.alignment import Alignment
from alt_fast.model.config import ModelConfig, Pooling
from alt_fast_kernels import match, proportional_attention_qkvpacked
from tests.conftest import SMALL_LABELS, few_blocks, small_alt


def run(path: Path, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(x) for x in session.run(None, {name: x.numpy() for name, x in inputs.items()})]


def run_module(module: nn.Module, inputs: Mapping[str, Tensor], outputs: tuple[str, ...], folder: Path) -> Path:
    """The module's file."""
    save(folder, Files({"module": to_onnx(module, inputs, outputs)}, torch.zeros(0, 1)), int8=False)
    return folder / "module.onnx"


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def trained(onnx_folder: Path) -> TrainedModel:
    with few_blocks():
        return load(onnx_folder)


def test_files_for_others_tell_nothing_of_this_machine(onnx_folder: Path) -> None:
    files = list(onnx_folder.glob("*.onnx"))
    assert files
    assert not any(b".py" in path.read_bytes() for path in files)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_halves_are_the_model_for_any_number_of_frames_clips_and_labels(
    trained: TrainedModel, onnx_folder: Path, count: int
) -> None:
    exported = trained.model
    video = torch.randn(count, exported.config.frames, 3, *exported.image_size)
    classes = torch.randn(count + 1, 64)
    with torch.inference_mode():
        expected = exported.see(video.flatten(0, 1), "both")
        probabilities, _ = exported.probabilities(video, classes, "both")
    frame, pooled, entity = run(onnx_folder / "frame_encoder.onnx", {"frames": video.flatten(0, 1)})
    close(frame, expected.frame)
    close(pooled, expected.pooled)
    assert torch.equal(entity, expected.entity)
    clips = {"frame": frame.unflatten(0, (count, -1)), "pooled": pooled.unflatten(0, (count, -1))}
    (found,) = run(onnx_folder / "decoder.onnx", clips | {"classes": classes})
    close(found, probabilities)


def test_the_whole_is_the_model_where_tokens_merge_choose_softly_and_frames_look_at_each_other(tmp_path: Path) -> None:
    """Where none merges: tests/benchmarks/test_cpu_speed.py."""
    torch.manual_seed(0)
    model = small_alt(r=4, shortcut=True, tuning="stm", tau=0.02, hard=False)
    for adapter in model.encoder.adapters.parameters():
        nn.init.normal_(adapter, std=0.1)  # they begin as nothing
    nn.init.zeros_(model.logit_scale)  # no probability is nearly 0 or 1
    inputs = {"video": torch.zeros(2, 2, 3, *model.image_size), "classes": torch.zeros(3, 64)}
    path = run_module(Whole(model, "alt"), inputs, ("probabilities",), tmp_path)
    for count in (1, 3):
        video, classes = torch.randn(count, 2, 3, *model.image_size), torch.randn(count + 1, 64)
        with torch.inference_mode():
            expected, _ = model.probabilities(video, classes)
            unmerged, _ = model.probabilities(video, classes, schedule=[0])
        (found,) = run(path, {"video": video, "classes": classes})
        close(found, expected)
        assert (unmerged - expected).abs().max() > 3e-4  # so that `close` would tell


class Attention(nn.Module):
    """Attention of tokens that stand for 1, 2, ... patches; packed qkv [F, N, 24] in place of frames."""

    def forward(self, frames: Tensor) -> Tensor:
        size = frames.new_ones(frames.shape[:2]).cumsum(-1)
        return proportional_attention_qkvpacked(frames.unflatten(-1, (3, 2, 4)), size)


def test_attention_of_merged_tokens_is_the_models(tmp_path: Path) -> None:
    path = run_module(Attention(), {"frames": torch.zeros(2, 7, 24)}, ("out",), tmp_path)
    for count in (1, 3):
        qkv = torch.randn(count, 7, 24)
        close(run(path, {"frames": qkv})[0], Attention()(qkv))


class Plan(nn.Module):
    """The plan of a merge, for keys in place of frames."""

    def forward(self, frames: Tensor) -> Tensor:
        return match(frames, 5, 1).slot


def test_tokens_that_score_equally_merge_as_in_pytorch(tmp_path: Path) -> None:
    """Keys of few values, so that most scores have equals; a sort that is not stable settles them otherwise."""
    path = run_module(Plan(), {"frames": torch.zeros(2, 37, 4)}, ("slot",), tmp_path)
    for count in (1, 8):
        keys = torch.randint(1, 3, (count, 37, 4)).float()
        (found,) = run(path, {"frames": keys})
        assert torch.equal(found, match(keys, 5, 1).slot)


class Pooled(nn.Module):
    """What alignments with every pooling give for tokens [B, T, N', d] in place of videos."""

    def __init__(self) -> None:
        super().__init__()
        configs = [ModelConfig(pool=pool) for pool in get_args(Pooling)]
        self.alignments = nn.ModuleList(Alignment(torch.randn(9, 16), config) for config in configs)

    def forward(self, video: Tensor) -> list[Tensor]:
        size = video.new_ones(video.shape[:3]).cumsum(-1)
        return [alignment(video, size, None)[0] for alignment in self.alignments]


def test_every_pooling_is_the_models(tmp_path: Path) -> None:
    pooled = Pooled().eval()
    path = run_module(pooled, {"video": torch.zeros(2, 3, 5, 16)}, get_args(Pooling), tmp_path)
    tokens = torch.randn(4, 3, 5, 16)
    with torch.inference_mode():
        expected = pooled(tokens)
    for found, one in zip(run(path, {"video": tokens}), expected, strict=True):
        close(found, one)


def test_a_file_says_all_that_its_use_takes(trained: TrainedModel, onnx_folder: Path) -> None:
    mean, std = MEAN_STD["imagenet"]
    expected = {"frames": 2, "size": [48, 48], "test_crop": 0.875, "mean": list(mean), "std": list(std)}
    expected |= {"labels": SMALL_LABELS, "templates": ["{}"], "head": "both"}
    for name in ("frame_encoder", "decoder", "frame_encoder.int8", "decoder.int8"):
        session = onnxruntime.InferenceSession(onnx_folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        assert json.loads(session.get_modelmeta().custom_metadata_map[METADATA]) == expected
        assert {x.shape[0] for x in session.get_inputs()} <= {"frames", "clips", "labels"}
        outputs = ["probabilities"] if name.startswith("decoder") else ["frame", "pooled", "entity"]
        assert [x.name for x in session.get_outputs()] == outputs
    embeddings = torch.from_numpy(np.load(onnx_folder / CLASSES))
    close(embeddings, trained.embed(SMALL_LABELS))


def test_weights_of_8_bits_are_smaller_and_nearly_right(trained: TrainedModel, onnx_folder: Path) -> None:
    whole, small = (onnx_folder / f"frame_encoder{ending}.onnx" for ending in ("", ".int8"))
    frames = torch.randn(6, 3, *trained.model.image_size)
    expected, found = run(whole, {"frames": frames})[0], run(small, {"frames": frames})[0]
    assert not torch.equal(found, expected)
    assert nn.functional.cosine_similarity(found, expected).min() > 0.99
    decoders = [(onnx_folder / f"decoder{ending}.onnx").stat().st_size for ending in ("", ".int8")]
    assert decoders[1] < 0.5 * decoders[0]


def test_what_cannot_be_exported_is_named(
    trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArgumentError, match="are frame_encoder, decoder, video_encoder, got encoder"):
        build(trained, ["encoder"], [], "alt")
    over_time = TrainedModel(small_alt(tuning="stm", r=0), [], [], trained.augment)
    with pytest.raises(ArgumentError, match=r"tuning 'stm'.*export the whole, --onnx video_encoder"):
        build(over_time, [], [], "alt")
    with pytest.raises(ArgumentError, match="labels must not be empty"):
        build(trained, ["decoder"], [], "alt")
    monkeypatch.setattr(onnx, "MAX_BYTES", 1000)
    with pytest.raises(RunError, match=r"Linear has 0.0 GiB of weights.* no more than 2 GiB"):
        to_onnx(nn.Linear(20, 20), {"frames": torch.zeros(2, 20)}, ("out",))

    command = ["--checkpoint", "none", "--out", str(tmp_path / "new")]
    for option in (["--int8"], ["--head", "clip"], ["--labels", "a star"]):
        assert main([*command, *option]) == 2
        assert f"{option[0]} is of the ONNX files: add --onnx" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
