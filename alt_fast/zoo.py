"""Trained image models of timm and open_clip, by name, with their preprocessing."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import open_clip
import timm
from PIL import Image
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from alt_fast.clip import load_clip


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
    Raises ValueError, WeightsError, or what timm raises for a checkpoint that does not fit.
    """
    library, _, architecture = name.partition(":")
    if library == "timm":
        options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
        model = timm.create_model(architecture, pretrained=weights is None, num_classes=0, **options)
        if weights is not None:  # the filter fits position embeddings to the image size
            timm.models.load_checkpoint(model, weights, filter_fn=checkpoint_filter_fn)
        config = timm.data.resolve_model_data_config(model)
        if image_size is not None:
            config["input_size"] = (3, image_size, image_size)
        return ImageModel(model.eval(), timm.data.create_transform(**config), config["mean"], config["std"])
    if library == "open_clip":
        if weights is None:
            raise ValueError(f"{name} needs --weights: a checkpoint file, or a tag such as openai")
        visual = load_clip(architecture, weights, image_size).visual
        transform = open_clip.image_transform(visual.image_size, is_train=False)
        return ImageModel(visual, transform, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    raise ValueError(f"model must be timm:NAME or open_clip:NAME, got {name!r}")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What `load_image_model` takes besides the name."""
    parser.add_argument("--weights", metavar="FILE", help="checkpoint file, or open_clip's tag; by default timm's own")
    parser.add_argument("--image-size", type=int, metavar="N", help="pixels; by default the architecture's own")
