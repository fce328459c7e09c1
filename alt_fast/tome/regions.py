"""Which regions the patches of an image merged into, for any patched model."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchvision.transforms.functional import normalize, to_tensor

from alt_fast.errors import ArgumentError
from alt_fast.pictures import as_rgb
from alt_fast.tome.block import MergingBlock, host_of
from alt_fast.tome.patch import merge_trace


def image_regions(
    image: Image.Image,
    model: nn.Module,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | tuple[int, int] | None = None,
) -> tuple[Image.Image, NDArray[np.integer[Any]]]:
    """Find the regions that the patches of an image end in.

    image: of any size. model: one that takes pixels alone, patched by `apply_patch(..., trace_source=True)`; it runs
    once. mean, std: of the model's normalisation, by channel; timm's and open_clip's models know their own. size: of
    the model's input, one number or height and width, where it does not say itself.
    Returns the image, squeezed to the model's input, and the number of the region of each patch, [h, w], of an h x w
    grid. Raises ArgumentError when the image has 32 bits a channel, mean, std or size are not to be found, the model
    keeps no trace, or its tokens are no grid of patches.
    """
    known = _preprocessing(model)
    mean, std = known.get("mean") if mean is None else mean, known.get("std") if std is None else std
    if mean is None or std is None:
        raise ArgumentError(f"{host_of(model).__name__} does not say how its input is normalised: give mean and std")
    given = (int(size), int(size)) if isinstance(size, Integral) else size
    height, width = given or _input_size(model, known)  # type: ignore[misc]
    squeezed = as_rgb(image).resize((width, height), Image.Resampling.BICUBIC)
    parameter = next(model.parameters())
    pixels = normalize(to_tensor(squeezed), list(mean), list(std))[None].to(parameter.device, parameter.dtype)
    training = [module for module in model.modules() if module.training]
    try:
        with torch.inference_mode():
            _run(model.eval(), pixels)
    finally:
        for module in training:
            module.training = True
    source = merge_trace(model).source[0].cpu().numpy()
    protected = next(module.tome.protected for module in model.modules() if isinstance(module, MergingBlock))
    rows, columns = _grid(model, len(source), protected, height, width)
    return squeezed, source[-rows * columns :].reshape(rows, columns)


def _preprocessing(model: nn.Module) -> dict[str, Any]:
    """What timm or open_clip keeps with a model: mean, std, and the input's size."""
    for holder in (model, getattr(model, "visual", None)):
        for attribute in ("pretrained_cfg", "preprocess_cfg"):
            config = getattr(holder, attribute, None)
            if isinstance(config, dict) and "mean" in config:
                return config
    return {}


def _input_size(model: nn.Module, known: Mapping[str, Any]) -> tuple[int, int]:
    for module in model.modules():  # an embedding knows what it was built for, which may not be what was published
        if (size := getattr(module, "img_size", None) or getattr(module, "image_size", None)) is not None:
            return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    size = getattr(getattr(model, "visual", model), "input_resolution", None) or known.get("size")
    if size is None and "input_size" in known:  # of timm's models that take any: channels, height, width
        size = known["input_size"][1:]
    if size is None:  # transformers' models that take any
        configs = (getattr(module, "config", None) for module in model.modules())
        size = next((found for config in configs if (found := getattr(config, "image_size", None))), None)
    if size is None:
        raise ArgumentError(f"{host_of(model).__name__} does not say how large its input is: give size")
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _grid(model: nn.Module, num_tokens: int, protected: int, height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of an image's patches: by the convolution that makes them, or as if they were square."""
    count = num_tokens - protected
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == module.stride != (1, 1):
            down, right = height / module.kernel_size[0], width / module.kernel_size[1]
            for grid in ((int(down), int(right)), (math.ceil(down), math.ceil(right))):  # cut off, or padded
                if math.prod(grid) == count:  # a stem's is finer
                    return grid
    rows = max(1, round(math.sqrt(count * height / width)))
    columns = count // rows
    if rows * columns != count or rows * width != columns * height:
        raise ArgumentError(
            f"{host_of(model).__name__}: {count} patches of {height} x {width} pixels make no grid of squares"
        )
    return rows, columns


def _run(model: Any, pixels: torch.Tensor) -> None:
    for method in ("encode_image", "get_image_features"):
        if hasattr(model, method):
            getattr(model, method)(pixels)
            return
    model(pixels)
