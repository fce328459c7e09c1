"""Image models of timm, transformers and open_clip, by name, with their preprocessing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import timm
import torch
from PIL import Image
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from alt_fast.errors import AltFastError, ArgumentError


class ImageModelError(AltFastError, RuntimeError):
    """A model that cannot be made, or weights that do not fit it; the message names both."""


RANDOM = "random"
"""In place of weights: none are read, and every parameter is drawn, always alike. Speed does not depend on them."""


class ImageModel(NamedTuple):
    """model: takes images [B, 3, H, W]. transform: an image to [3, H, W]. mean, std: of its normalisation."""

    model: nn.Module
    transform: Callable[[Image.Image], Tensor]
    mean: Sequence[float]
    std: Sequence[float]


def load_image_model(name: str, weights: str | None, image_size: int | None = None, head: bool = False) -> ImageModel:
    """Load "timm:ARCHITECTURE", "hf:REPOSITORY" or "hf:FOLDER", or the image tower of "open_clip:ARCHITECTURE".

    weights: a checkpoint file, a tag of open_clip, or RANDOM; without it the library's own are fetched, and those of
    transformers come with the repository. image_size: pixels, where it is not the architecture's own. head: classify,
    where the model can, instead of embedding; one of transformers can where its configuration names a classifier.
    Raises ArgumentError for another name, ImageModelError or WeightsError when it cannot be had.
    """
    with _same_draws():
        return _load(name, weights, image_size, head)


@contextmanager
def _same_draws() -> Iterator[None]:
    """Inside, random weights are the same ones every time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def _load(name: str, weights: str | None, image_size: int | None, head: bool) -> ImageModel:
    library, _, architecture = name.partition(":")
    if library == "timm":
        return _load_timm(architecture, weights, image_size, head)
    if library == "hf":
        return _load_huggingface(architecture, weights, image_size, head)
    if library == "open_clip":
        return _load_open_clip(architecture, weights, image_size)
    raise ArgumentError(f"model must be timm:NAME, hf:NAME or open_clip:NAME, got {name!r}")


def _load_timm(architecture: str, weights: str | None, image_size: int | None, head: bool) -> ImageModel:
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    if not head:
        options["num_classes"] = 0
    try:
        model = timm.create_model(architecture, pretrained=weights is None, **options)
        if weights not in (None, RANDOM):  # the filter fits position embeddings to the image size
            timm.models.load_checkpoint(model, weights, filter_fn=checkpoint_filter_fn)
    except Exception as e:  # timm, its hub and PyTorch raise many kinds for names, downloads and files
        raise ImageModelError(f"cannot load timm:{architecture} ({weights or 'its own weights'}): {e}") from e
    if image_size is not None:
        _check_size(architecture, model, image_size)
    config = timm.data.resolve_model_data_config(model)
    if image_size is not None:
        config["input_size"] = (3, image_size, image_size)
    return ImageModel(model.eval(), timm.data.create_transform(**config), config["mean"], config["std"])


def _check_size(architecture: str, model: Any, image_size: int) -> None:
    """Raise ImageModelError for a size that timm would refuse in the forward pass."""
    embedding = getattr(model, "patch_embed", None)
    patch, padded = getattr(embedding, "patch_size", None), getattr(embedding, "dynamic_img_pad", False)
    if isinstance(patch, tuple) and not padded and any(image_size % side for side in patch):
        pixels = " x ".join(map(str, patch))
        raise ImageModelError(f"timm:{architecture} has patches of {pixels} pixels, which do not divide {image_size}")


def _load_huggingface(name: str, weights: str | None, image_size: int | None, head: bool) -> ImageModel:
    if weights not in (None, RANDOM):
        raise ArgumentError(f"hf:{name} brings its own weights: --weights must be {RANDOM} or absent, got {weights}")
    if image_size is not None:
        raise ArgumentError(f"hf:{name} has a size of its own, got --image-size {image_size}")
    import transformers  # an extra that models of timm do not need

    try:
        config = transformers.AutoConfig.from_pretrained(name)
        classifies = head and _has_classifier(config)
        kind = transformers.AutoModelForImageClassification if classifies else transformers.AutoModel
        model = kind.from_config(config) if weights == RANDOM else kind.from_pretrained(name)
        processor = transformers.AutoImageProcessor.from_pretrained(name)
    except Exception as e:  # the hub, files and configurations raise many kinds
        raise ImageModelError(f"cannot load hf:{name}: {e}") from e

    def transform(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    if not classifies:  # a classifier's head stands beside its tower
        model = getattr(model, "vision_model", model)  # of a model of pictures and text
    return ImageModel(model.eval(), transform, processor.image_mean, processor.image_std)


def _has_classifier(config: Any) -> bool:
    """Whether the weights of a configuration of transformers are an image classifier's; other models' have no head."""
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as CLASSIFIERS

    if type(config) not in CLASSIFIERS:
        return False
    kinds = CLASSIFIERS[type(config)]
    names = {kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,))}
    return not names.isdisjoint(config.architectures or ())


def _load_open_clip(architecture: str, weights: str | None, image_size: int | None) -> ImageModel:
    if weights is None:
        raise ArgumentError(
            f"open_clip:{architecture} needs --weights: a checkpoint file, a tag such as openai, or {RANDOM}"
        )
    import open_clip  # an extra that models of timm do not need

    from alt_fast.model.clip_weights import build_clip

    visual = build_clip(architecture, None if weights == RANDOM else weights, image_size).visual
    transform = open_clip.image_transform(visual.image_size, is_train=False)
    return ImageModel(visual, transform, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
