"""Trained image models of timm and open_clip, by name, with their preprocessing."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import timm
from PIL import Image
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from alt_fast.errors import AltFastError, ArgumentError


class ImageModelError(AltFastError, RuntimeError):
    """A model that cannot be made, or weights that do not fit it; the message names both."""


class ImageModel(NamedTuple):
    """model: embeds images [B, 3, H, W]. transform: an image to [3, H, W]. mean, std: of its normalisation."""

    model: nn.Module
    transform: Callable[[Image.Image], Tensor]
    mean: Sequence[float]
    std: Sequence[float]


def load_image_model(name: str, weights: str | None, image_size: int | None = None) -> ImageModel:
    """Load "timm:ARCHITECTURE", or the image tower of "open_clip:ARCHITECTURE".

    weights: a checkpoint file, or a tag of open_clip; without it timm's pretrained weights are fetched.
    image_size: pixels, where it is not the architecture's own.
    Raises ArgumentError for another name, ImageModelError or WeightsError when it cannot be had.
    """
    library, _, architecture = name.partition(":")
    if library == "timm":
        return _load_timm(architecture, weights, image_size)
    if library == "open_clip":
        return _load_open_clip(architecture, weights, image_size)
    raise ArgumentError(f"model must be timm:NAME or open_clip:NAME, got {name!r}")


def _load_timm(architecture: str, weights: str | None, image_size: int | None) -> ImageModel:
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        model = timm.create_model(architecture, pretrained=weights is None, num_classes=0, **options)
        if weights is not None:  # the filter fits position embeddings to the image size
            timm.models.load_checkpoint(model, weights, filter_fn=checkpoint_filter_fn)
    except Exception as e:  # timm, its hub and PyTorch raise many kinds for names, downloads and files
        raise ImageModelError(f"cannot load timm:{architecture} ({weights or 'its own weights'}): {e}") from e
    config = timm.data.resolve_model_data_config(model)
    if image_size is not None:
        config["input_size"] = (3, image_size, image_size)
    return ImageModel(model.eval(), timm.data.create_transform(**config), config["mean"], config["std"])


def _load_open_clip(architecture: str, weights: str | None, image_size: int | None) -> ImageModel:
    if weights is None:
        raise ArgumentError(f"open_clip:{architecture} needs --weights: a checkpoint file, or a tag such as openai")
    import open_clip  # an extra that models of timm do not need

    from alt_fast.model.clip_weights import build_clip

    visual = build_clip(architecture, weights, image_size).visual
    transform = open_clip.image_transform(visual.image_size, is_train=False)
    return ImageModel(visual, transform, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
