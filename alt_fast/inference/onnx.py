"""A trained model as ONNX files, which run without PyTorch: frame encoder and decoder, or both in one."""

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from onnxruntime.quantization import quantize_dynamic
from onnxscript import ir, opset18
from torch import Tensor, nn

from alt_fast.data.augment import MEAN_STD
from alt_fast.errors import ArgumentError, RunError
from alt_fast.files import write_atomically
from alt_fast.inference.trained import TrainedModel
from alt_fast.model.alt import ALT, FrameFeatures
from alt_fast.model.config import Head

PARTS = ("frame_encoder", "decoder", "video_encoder")
"""What a file can hold: `FrameEncoder`, `Decoder`, or `Whole`."""

CLASSES = "classes.npy"
"""The embeddings of the labels, [I, d] fp32: what the input `classes` takes."""

METADATA = "alt_fast"
"""The key in a file's metadata under which all is that its use takes besides, as JSON (`_metadata`)."""

MAX_BYTES = 2**31 - 2**24
"""Of weights in one file: protobuf takes 2 GiB, the graph included."""

_COUNTED = {"frames": "frames", "video": "clips", "frame": "clips", "pooled": "clips", "classes": "labels"}
"""What the first dimension of an input counts, of any size; the others are fixed."""


class FrameEncoder(nn.Module):
    """frames [F, 3, H, W] fp32, normalised -> frame, pooled [F, d] fp32, entity [F, n] int64 of `FrameFeatures`."""

    def __init__(self, model: ALT, head: Head) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        frame, pooled, entity, _ = self.model.see(frames, self.head)
        return frame, pooled, entity


class Decoder(nn.Module):
    """frame, pooled [B, T, d] of `FrameEncoder`, classes [I, d] -> probabilities [B, I], all fp32."""

    def __init__(self, model: ALT, head: Head) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, frame: Tensor, pooled: Tensor, classes: Tensor) -> Tensor:
        unused = torch.empty(*frame.shape[:2], 0, dtype=torch.int64)  # entities name what was seen, and score nothing
        return self.model.score(FrameFeatures(frame, pooled, unused, unused), classes, self.head)


class Whole(nn.Module):
    """video [B, T, 3, H, W] fp32, normalised, classes [I, d] -> probabilities [B, I] fp32."""

    def __init__(self, model: ALT, head: Head) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, video: Tensor, classes: Tensor) -> Tensor:
        return self.model.probabilities(video, classes, self.head)[0]


class Files(NamedTuple):
    """models: ONNX by PARTS. classes: the labels' embeddings [I, d] fp32."""

    models: dict[str, ir.Model]
    classes: Tensor


def build(trained: TrainedModel, parts: Sequence[str], labels: Sequence[str], head: Head) -> Files:
    """Return these PARTS of a model, all for none, for any number of frames, clips and labels.

    labels: whose embeddings come along. head: who scores. Raises ArgumentError for a part that is none, for no labels,
    and for parts of a model with adapters over time; RunError for what is too large.
    """
    parts = parts or PARTS
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ArgumentError(f"parts of a model as ONNX are {', '.join(PARTS)}, got {', '.join(unknown)}")
    model = trained.model.eval()
    if model.config.tuning == "stm" and set(parts) != {"video_encoder"}:
        raise ArgumentError(
            "this model has adapters over time (tuning 'stm'), so its frames cannot be encoded one by one: export the "
            "whole, --onnx video_encoder"
        )
    classes = trained.embed(labels)
    metadata = json.dumps(_metadata(trained, labels, head))
    models = {}
    for name in parts:
        models[name] = to_onnx(*_part(name, model, head))
        models[name].metadata_props[METADATA] = metadata
    return Files(models, classes)


def save(folder: Path, files: Files, int8: bool) -> None:
    """Write `NAME.onnx` of every part, and CLASSES. Raises FileError.

    int8: beside each part also `NAME.int8.onnx`, where the weights of linear layers are 8 bits wide and what they are
    multiplied with is rounded as it comes (dynamic quantisation).
    """
    write_atomically(folder / CLASSES, lambda file: np.save(file, files.classes.numpy()))
    for name, model in files.models.items():
        path = folder / f"{name}.onnx"
        write_atomically(path, partial(ir.save, model))
        if int8:
            products = [node for node in model.graph if node.op_type == "MatMul"]
            of_no_weights = [node.name for node in products if not node.inputs[1].is_initializer()]
            quantize = partial(
                quantize_dynamic,
                path,
                op_types_to_quantize=["MatMul", "Gemm"],
                nodes_to_exclude=of_no_weights,
                per_channel=True,
            )
            write_atomically(path.with_suffix(".int8.onnx"), quantize)


def to_onnx(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> ir.Model:
    """Return a module as ONNX, traced on example inputs, by name. Raises RunError for what is too large.

    PyTorch's own exporter would compare tokens in fp32 (`alt_fast_kernels.match`). What torch.export traced compares
    them in fp64, where equal tokens score equally, and needs one operator more: a stable sort.
    """
    counted = {name: _COUNTED[name] for name in inputs}
    dims = {counts: torch.export.Dim(counts, max=2**16) for counts in counted.values()}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch to itself, and that two inputs count the same
        shapes = tuple({0: dims[counts]} for counts in counted.values())
        program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=shapes)
        found = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple({0: counts} for counts in counted.values()),
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
        )
    assert found is not None
    size = sum(value.const_value.nbytes for value in found.model.graph.initializers.values())
    if size > MAX_BYTES:
        raise RunError(
            f"{type(module).__name__} has {size / 2**30:.1f} GiB of weights, and an ONNX file takes no more than 2 GiB"
        )
    for graph in (found.model.graph, *found.model.functions.values()):
        for node in ir.traversal.RecursiveGraphIterator(graph):
            node.metadata_props.clear()  # paths of this machine, to a file for others
    return found.model


def _stable_sort(x: Any, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """aten.sort.stable: ONNX's TopK puts the lower index first where values are equal."""
    size = opset18.Gather(opset18.Shape(x), opset18.Constant(value_ints=[dim]))
    return opset18.TopK(x, size, axis=dim, largest=int(descending), sorted=1)


def _part(name: str, model: ALT, head: Head) -> tuple[nn.Module, dict[str, Tensor], tuple[str, ...]]:
    """What `to_onnx` takes."""
    num_frames, width = model.config.frames, model.alignment.entities.shape[1]
    video, classes = torch.zeros(2, num_frames, 3, *model.image_size), torch.zeros(3, width)
    if name == "frame_encoder":
        return FrameEncoder(model, head), {"frames": video.flatten(0, 1)}, ("frame", "pooled", "entity")
    if name == "decoder":
        frame, pooled = torch.zeros(2, 2, num_frames, width).unbind()  # one tensor twice would be one input
        return Decoder(model, head), {"frame": frame, "pooled": pooled, "classes": classes}, ("probabilities",)
    return Whole(model, head), {"video": video, "classes": classes}, ("probabilities",)


def _metadata(trained: TrainedModel, labels: Sequence[str], head: Head) -> dict[str, Any]:
    """What makes clips for these files out of videos, and names out of what they answer.

    frames: of a clip, the middle ones of as many equal parts. test_crop: side of the square in the middle of a picture,
    as a fraction of its short side. size: height and width in pixels, that the square is resized to. mean, std: of RGB
    in [0, 1], that it is normalised with. labels: those of classes.npy. templates: the prompts that these stand in.
    """
    mean, std = MEAN_STD[trained.augment.normalize]
    return {
        "frames": trained.model.config.frames,
        "size": trained.model.image_size,
        "test_crop": trained.augment.test_crop,
        "mean": mean,
        "std": std,
        "labels": list(labels),
        "templates": trained.templates,
        "head": head,
    }
