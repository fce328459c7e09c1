"""Weights out of an ONNX file, as transformers 4 exported them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file

from benchmarks.onnx_weights import main

THEIRS = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "cls_token": "embeddings.cls_token",
    "blocks": "encoder.layer",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=28, patch_size=7, embed_dim=16, depth=2, num_heads=2, num_classes=0, init_values=0.1
    ).eval()


def export(model: torch.nn.Module, path: Path, prefix: str) -> None:
    """Write what transformers 4 and torch's first exporter made of a model: linear weights without their names."""
    tensors: dict[str, np.ndarray] = {}
    nodes = []
    for name, tensor in model.state_dict().items():
        theirs = "layernorm" + name.removeprefix("norm") if name.startswith("norm.") else name
        for ours, other in THEIRS.items():
            theirs = theirs.replace(ours, other)
        if name == "pos_embed":
            tensors |= {"onnx::Concat_1": tensor[:, :1].numpy(), "onnx::Reshape_2": tensor[:, 1:].numpy()}
            continue
        parts = {theirs: tensor}
        if ".attn.qkv." in theirs:
            names = [theirs.replace("attn.qkv", f"attention.attention.{part}") for part in ("query", "key", "value")]
            parts = dict(zip(names, tensor.chunk(3), strict=True))
        for part, value in parts.items():
            if value.ndim == 2:
                weight = f"onnx::MatMul_{len(tensors)}"
                layer = f"{prefix}{part.removesuffix('.weight')}".replace(".", "/").replace("layer/", "layer.")
                node = f"/{layer}/MatMul"
                nodes.append(helper.make_node("MatMul", ["x", weight], [node], name=node))
                tensors[weight] = value.T.contiguous().numpy()
            else:
                tensors[f"{prefix}{part}"] = value.numpy()
    if prefix:
        tensors["decoder.weight"] = np.zeros(3, np.float32)  # not of the tower
    held = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "model", [], [], held)), path)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_the_weights_come_back(tmp_path: Path, prefix: str) -> None:
    model = small_model()
    export(model, tmp_path / "model.onnx", prefix)
    assert main([str(tmp_path / "model.onnx"), "--out", str(tmp_path / "out.safetensors")]) == 0
    found, expected = load_file(tmp_path / "out.safetensors"), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_other_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    onnx.save(helper.make_model(helper.make_graph([], "empty", [], [], [])), tmp_path / "empty.onnx")
    for name, message in (("text.onnx", "cannot read"), ("empty.onnx", "is no DINOv2"), ("none.onnx", "cannot read")):
        with pytest.raises(SystemExit):
            main([str(tmp_path / name), "--out", str(tmp_path / "out.safetensors")])
        assert message in (error := capsys.readouterr().err)
        assert name in error
