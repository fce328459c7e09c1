"""CLIP models and their weights, through open_clip."""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import resize_pos_embed
from safetensors.torch import load_file
from torch import Tensor, nn

from alt_fast.errors import AltFastError, ArgumentError
from alt_fast.model.config import TINY, TINY_ROPE
from alt_fast.model.rotary_tower import RotaryTower

TINY_CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": 48,
        "patch_size": 8,
        "width": 64,
        "layers": 4,
        "head_width": 32,
        "pos_embed_type": "sin_cos_2d",  # learned ones take long to tell places apart
    },
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
"""A CLIP of two CPU cores' size, which `motion_shapes_clip` trains from scratch."""

TOWERS = Path(__file__).parent / "towers"
"""Trained tiny CLIPs that come along, `NAME.safetensors`."""

WORDS, WORD_ROWS = "token_embedding.weight", "token_embedding.rows"
"""Where a tower that comes along has the embeddings of words that it was trained on, and their numbers."""

_OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI keeps among the weights


class WeightsError(AltFastError, RuntimeError):
    """CLIP weights that cannot be had or do not fit; the message says what to pass instead."""


def own_towers() -> list[str]:
    """Return the names of the trained tiny CLIPs that come along."""
    return sorted(path.stem for path in TOWERS.glob("*.safetensors"))


def build_clip(backbone: str, pretrained: str | None = None, image_size: int | None = None) -> open_clip.CLIP:
    """An open_clip CLIP in fp32, eval mode.

    backbone: an open_clip model name such as "ViT-B-16", "tiny", or "tiny_rope", the same with rotary positions.
    pretrained: None for random weights, one of open_clip's tags ("openai"), "motion_shapes" or "motion_shapes_2" for a
        tiny CLIP that comes along, or a checkpoint file in OpenAI's format (TorchScript archive or state dict) or
        open_clip's (.pt, .bin, .safetensors).
    image_size: pixels; other than the pretrained size, position embeddings are interpolated.

    OpenAI's weights were trained with QuickGELU, most of open_clip's with GELU: a tag brings its own activation, a file
    in OpenAI's format takes QuickGELU, any other file the backbone's (append "-quickgelu" to its name for the other).
    Raises WeightsError, or ArgumentError for an unknown backbone.
    """
    if backbone in (TINY, TINY_ROPE):
        config = TINY_CONFIG
    else:
        found = open_clip.get_model_config(backbone)
        if found is None:
            raise ArgumentError(
                f"backbone {backbone!r} is none of {TINY!r}, {TINY_ROPE!r} and the model names of open_clip, such as "
                "'ViT-B-16'"
            )
        config = found
    config = {**config, "vision_cfg": dict(config["vision_cfg"])}
    if _foreign_text(config):
        raise ArgumentError(f"backbone {backbone!r} has a text tower other than CLIP's, which is not supported")
    config.pop("custom_text", None)
    if image_size is not None:
        config["vision_cfg"]["image_size"] = image_size

    weights = None
    if pretrained is not None:
        path, quick_gelu = _find_weights(backbone, pretrained)
        weights = _all_words(read_state_dict(path))
        if any(key in weights for key in _OPENAI_KEYS):
            quick_gelu = True
        if quick_gelu is not None:
            config["quick_gelu"] = quick_gelu
    model = open_clip.CLIP(**config)
    if backbone == TINY_ROPE:
        RotaryTower.take_over(model.visual)
    if weights is not None:
        _load_weights(model, weights, f"{backbone!r} from {pretrained!r}")
    return model.eval()


def move_back(tower: nn.Module, start: Mapping[str, Tensor], share: float) -> None:
    """Put a tower's weights between those that its training started from, at 0, and its own, at 1, in place."""
    own = tower.state_dict()
    tower.load_state_dict({name: start[name].to(own[name]).lerp(own[name], share) for name in own})


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a CLIP checkpoint; never runs Python code from it. Raises WeightsError naming the file."""
    try:
        if str(path).endswith(".safetensors"):
            return load_file(str(path))
        if _is_torchscript(path):
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged file fails in many ways
        raise WeightsError(f"cannot read CLIP weights from {path}: {e}") from e
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"cannot read CLIP weights from {path}: it holds no dictionary of tensors")
    return {key.removeprefix("module."): value for key, value in loaded.items()}


def _find_weights(backbone: str, pretrained: str) -> tuple[str, bool | None]:
    """Path of the weights, and whether they need QuickGELU (None: as the backbone says)."""
    if Path(pretrained).is_file():
        return pretrained, None
    own = own_towers()
    if pretrained in own and backbone == TINY:
        return str(TOWERS / f"{pretrained}.safetensors"), None
    if pretrained in own:
        raise WeightsError(
            f"the weights {pretrained!r} that come along are those of {TINY!r}, and the backbone is {backbone!r}: set "
            "pretrained to weights of its own, or pretrain one, as --config motion_shapes_clip does"
        )
    tag = open_clip.get_pretrained_cfg(backbone, pretrained)
    if not tag:
        tags = [*(own if backbone == TINY else ()), *open_clip.list_pretrained_tags_by_model(backbone)]
        known = ", ".join(tags) or "none"
        raise WeightsError(f"pretrained={pretrained!r} is neither a file nor a tag of {backbone} (its tags: {known})")
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # it reports every retry; the error below says it once
    try:
        path = open_clip.download_pretrained(tag)
    except Exception as e:  # whatever a hub or URL client raises
        raise WeightsError(
            f"weights {pretrained!r} of {backbone} could not be downloaded ({type(e).__name__}: {e}). Fetch the file "
            "where there is a network and pass its path as pretrained=PATH (--model.pretrained PATH)"
        ) from e
    finally:
        hub.setLevel(level)
    return path, bool(tag.get("quick_gelu", False))


def _all_words(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make the whole table of words of one that has only those trained on; the others get random embeddings."""
    if WORD_ROWS not in weights:
        return weights
    rows, known = weights.pop(WORD_ROWS).long(), weights[WORDS].float()
    size = (int(TINY_CONFIG["text_cfg"]["vocab_size"]), known.shape[1])
    table = torch.randn(size, generator=torch.Generator().manual_seed(0)) * known.std()
    return {**weights, WORDS: table.index_copy(0, rows, known)}


def _load_weights(model: open_clip.CLIP, weights: dict[str, Tensor], what: str) -> None:
    weights = {key: value for key, value in weights.items() if key not in _OPENAI_KEYS}
    try:
        resize_pos_embed(weights, model)
        model.load_state_dict(weights)
    except (RuntimeError, KeyError) as e:
        raise WeightsError(f"the weights do not fit {what}: {e}") from e


def _is_torchscript(path: str | Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def backbones() -> list[str]:
    """Return the backbones that ALT takes: two tiny ones, and open_clip's CLIPs with a vision transformer."""
    known = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        foreign = _foreign_text(config) or "hf_tokenizer_name" in config["text_cfg"]  # which no `TextTower` reads
        if isinstance(config["vision_cfg"].get("layers"), int) and not foreign and _plain_tower(config):
            known.append(name)
    return [TINY, TINY_ROPE, *known]


def _foreign_text(config: dict[str, Any]) -> bool:
    """Whether the text tower is not CLIP's."""
    return bool(config.get("custom_text", False)) or "hf_model_name" in config["text_cfg"]


def _plain_tower(config: dict[str, Any]) -> bool:
    """Whether open_clip builds its own vision transformer, pooled by its class token."""
    vision = config["vision_cfg"]
    return (
        not {"timm_model_name", "attentional_pool", "attn_pooler_queries"} & vision.keys() and "pool_type" not in vision
    )
