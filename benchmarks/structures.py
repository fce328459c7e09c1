"""Every structure of vision transformer in timm, open_clip and transformers, built small with random weights."""

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

GRID = 4
"""Patches along a side of the images of small models, where these can be had."""

LIBRARIES = {"timm": "timm", "open_clip": "open_clip_torch", "transformers": "transformers"}
"""Those that are walked, and the packages that they are in."""


@dataclass(frozen=True)
class Structure:
    """One kind of tower. models: how many published ones have it. build: a small one with random weights."""

    library: str
    name: str
    models: int
    build: Callable[[], nn.Module]


def structures() -> Iterator[Structure]:
    """All of all libraries."""
    yield from transformers_structures()
    yield from timm_structures()
    yield from open_clip_structures()


def model_names() -> dict[str, list[str]]:
    """The models that the structures of each library stand for, by name. Nothing is built."""
    return {"timm": timm_names(), "open_clip": open_clip_names(), "transformers": transformers_names()}


def structure(library: str, name: str, models: int = 1) -> Structure:
    """That of the model with this name."""
    build: dict[str, Callable[[str], nn.Module]] = {
        "timm": small_timm,
        "open_clip": small_open_clip,
        "transformers": small_transformer,
    }
    return Structure(library, name, models, partial(build[library], name))


def _distinct(library: str, names: Iterable[str], key: Callable[[str], object]) -> list[Structure]:
    """One structure for all names of a key, with the first one's name."""
    count: Counter[object] = Counter()
    first: dict[object, str] = {}
    for name in names:
        with torch.device("meta"):
            found = key(name)
        count[found] += 1
        first.setdefault(found, name)
    return [structure(library, first[found], models) for found, models in count.items()]


TIMM_FAMILIES = (
    *("beit", "cait", "convit", "crossvit", "deepseek_vit", "deit", "eva", "gemma4_vit", "hiera", "hieradet_sam2"),
    *("naflexvit", "pit", "qwen3_vit", "swin_transformer", "swin_transformer_v2", "tnt", "vision_transformer"),
    *("vision_transformer_hybrid", "vision_transformer_relpos", "vision_transformer_sam", "vitamin", "volo", "xcit"),
)
"""Modules of timm whose models attend between patches."""


def timm_names() -> list[str]:
    """Models of timm's vision transformers."""
    import timm

    return [name for name in timm.list_models() if _is_transformer(name)]


def timm_left_out() -> list[str]:
    """Modules of timm whose models are not looked at."""
    import timm

    return sorted(set(timm.list_modules()) - set(TIMM_FAMILIES))


def _is_transformer(name: str) -> bool:
    import timm

    return timm.models.model_entrypoint(name).__module__.rpartition(".")[2] in TIMM_FAMILIES


def timm_structures() -> list[Structure]:
    """Every structure of timm's vision transformers: class of the model, parts of its blocks, prefix, pooling, rope."""
    return _distinct("timm", timm_names(), lambda name: _structure(small_timm(name)))


def _structure(model: Any) -> tuple[object, ...]:
    blocks = getattr(model, "blocks", None)
    block = blocks[0] if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) else model
    of_model = ("rope", "attn_pool", "norm_pre", "reg_token", "cls_token")
    return (
        type(model).__name__,
        _parts(block),
        getattr(model, "num_prefix_tokens", None),
        bool(getattr(model, "global_pool", "")) and model.global_pool,
        *(type(getattr(model, part, None)).__name__ for part in of_model),
        bool(getattr(getattr(block, "attn", None), "rotate_half", False)),
    )


def _parts(module: nn.Module) -> tuple[tuple[str, str], ...]:
    return tuple((name, type(part).__name__) for name, part in module.named_modules())


def small_timm(name: str, **options: Any) -> nn.Module:
    """A model of timm with two narrow blocks, as far as its constructor has words for that.

    options: create_model's.
    """
    import timm

    shrunk: list[dict[str, Any]] = [
        {"depth": 2, "embed_dim": 64, "num_heads": 2},
        {"depth": 2, "embed_dim": 64, "num_heads": 2, "num_kv_heads": 1},
        {"depth": 2},
        {},
    ]
    for image in ({"img_size": GRID * _patch_size(name)}, {}):
        for small in shrunk:
            try:
                return timm.models.create_model(name, **{"num_classes": 5, **options, **image, **small})
            except (TypeError, AssertionError, ValueError, RuntimeError):
                continue
    return timm.models.create_model(name, **options)


def _patch_size(name: str) -> int:
    found = re.search(r"patch(\d+)", name)
    return int(found[1]) if found else 16


def open_clip_names() -> list[str]:
    """Models of open_clip whose image tower is a vision transformer, its own or timm's; those of short names first."""
    import open_clip

    names = []
    for name in sorted(open_clip.list_models(), key=len):
        vision = open_clip.get_model_config(name)["vision_cfg"]
        trunk = vision.get("timm_model_name")
        if isinstance(vision.get("layers"), int) if trunk is None else _is_transformer(trunk):
            names.append(name)
    return names


def open_clip_structures() -> list[Structure]:
    """Every structure of open_clip's image towers: parts and pooling; of timm's trunks what `timm_structures` has."""

    def key(name: str) -> object:
        tower = small_open_clip(name)
        trunk = getattr(tower, "trunk", None)
        if trunk is not None:
            return _structure(trunk), _parts(tower.head)
        return _parts(tower), *(getattr(tower, part) for part in ("pool_type", "final_ln_after_pool", "output_tokens"))

    return _distinct("open_clip", open_clip_names(), key)


def small_open_clip(name: str) -> Any:
    """The image tower of a model of open_clip, with two narrow blocks, or with a trunk of `small_timm`."""
    import open_clip

    config = open_clip.get_model_config(name)
    vision = config["vision_cfg"]
    if "timm_model_name" not in vision:
        vision |= {
            "layers": 2,
            "width": 64,
            "head_width": 16,
            "mlp_ratio": 2.0,
            "patch_size": 16,
            "image_size": GRID * 16,
        }
    text = {"layers": 1, "width": 16, "heads": 1, "vocab_size": 8, "context_length": 4}
    with mock.patch("timm.create_model", small_timm):
        return open_clip.CLIP(32, vision, text, quick_gelu=config.get("quick_gelu", False)).visual


TRANSFORMERS = {
    "AIMv2": "Aimv2VisionModel",
    "AltCLIP": "AltCLIPVisionModel",
    "BEiT": "BeitModel",
    "BLIP": "BlipVisionModel",
    "BLIP-2": "Blip2VisionModel",
    "Chinese-CLIP": "ChineseCLIPVisionModel",
    "CLIP": "CLIPVisionModel",
    "CLIPSeg": "CLIPSegVisionModel",
    "Data2Vec": "Data2VecVisionModel",
    "DeiT": "DeiTModel",
    "DINOv2": "Dinov2Model",
    "DINOv2 with registers": "Dinov2WithRegistersModel",
    "DINOv3": "DINOv3ViTModel",
    "DPT": "DPTModel",
    "DPT's backbone (DINOv2)": "Dinov2Backbone",
    "DINOv3's backbone": "DINOv3ViTBackbone",
    "EoMT": "EomtForUniversalSegmentation",
    "EoMT (DINOv3)": "EomtDinov3ForUniversalSegmentation",
    "GIT": "GitVisionModel",
    "Hiera": "HieraModel",
    "I-JEPA": "IJepaModel",
    "InstructBLIP": "InstructBlipVisionModel",
    "InstructBLIP (video)": "InstructBlipVideoVisionModel",
    "InternVL": "InternVLVisionModel",
    "MetaCLIP 2": "MetaClip2VisionModel",
    "MLCD": "MLCDVisionModel",
    "MSN": "ViTMSNModel",
    "OWL-ViT": "OwlViTVisionModel",
    "OWLv2": "Owlv2VisionModel",
    "Pixio": "PixioModel",
    "Pixtral": "PixtralVisionModel",
    "SAM": "SamVisionModel",
    "SAM 2": "Sam2VisionModel",
    "SAM 3": "Sam3VisionModel",
    "Sapiens 2": "Sapiens2Model",
    "SigLIP": "SiglipVisionModel",
    "SigLIP 2": "Siglip2VisionModel",
    "Swin": "SwinModel",
    "TimeSformer": "TimesformerModel",
    "TIPSv2": "Tipsv2VisionModel",
    "V-JEPA 2": "VJEPA2Model",
    "VideoMAE": "VideoMAEModel",
    "ViT": "ViTModel",
    "ViT-MAE": "ViTMAEModel",
    "ViTPose": "VitPoseBackbone",
    "ViViT": "VivitModel",
    "X-CLIP": "XCLIPVisionModel",
    "YOLOS": "YolosModel",
}
"""Vision towers of transformers, by the names that people give them."""

NO_TOWERS = (
    *("Align", "Bit", "ConvNext", "DINOv3ConvNext", "EfficientNet", "FocalNet", "HGNet", "MobileNet", "PPLCNet"),
    *("PoolFormer", "RTDetrResNet", "RegNet", "ResNet", "TextNet", "UVDoc"),  # convolve
    *("Aya", "Cohere2Vision", "DepthPro", "EdgeTam", "Granite4", "Timm"),  # hold towers of other classes, or of timm
    "Dinat",  # needs another library
)
"""How classes in transformers' registries of images begin that are no vision transformers of their own."""


def transformers_names() -> list[str]:
    """Towers of transformers: those of `TRANSFORMERS`, and by their classes all others of its registries of images.

    These are its automatic models of images, backbones and segmentation, and whatever is called a vision model.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    registries = (
        modeling_auto.MODEL_FOR_IMAGE_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
    )
    names = {name for registry in registries for name in registry.values()}
    names |= {name for name in dir(transformers) if re.search(r"Vision(Model|Transformer\w*)$", name)}
    names -= set(TRANSFORMERS.values())
    return [*TRANSFORMERS, *(name for name in sorted(names) if not name.startswith(NO_TOWERS))]


def transformers_structures() -> list[Structure]:
    """Every tower of `transformers_names`."""
    return [structure("transformers", name) for name in transformers_names()]


def small_transformer(name: str) -> nn.Module:
    """A tower of transformers with two narrow layers, or as it is where its configuration takes none of our sizes.

    name: of `TRANSFORMERS`, or of a class.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    cls = getattr(transformers, TRANSFORMERS.get(name, name))
    config = cls.config_class
    known = inspect.signature(config).parameters
    image = GRID * 16
    sides = {"image_size": [image, image]}
    options = {
        "hidden_size": 64,
        "num_hidden_layers": 3 if "num_blocks" in known else 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "image_size": image,
        "crop_size": image,
        "patch_size": 16,
        "frames_per_clip": 4,
        "num_frames": 4,
        "num_patches": GRID * GRID,
        "tubelet_size": [2, 16, 16] if name == "ViViT" else 2,
        "mlp_ratio": 2.0,
        "pred_num_hidden_layers": 1,
        "pred_hidden_size": 48,
        "mask_ratio": 0.25,
        "use_absolute_position_embeddings": True,
        "projection_dim": 32,
        "num_channels": 3,
        "head_dim": 16,
        "num_blocks": 1,
        "num_queries": 3,
    }
    for other in ({}, {"mlp_ratio": 2}, sides, sides | {"patch_size": [16, 16]}):  # configurations check their types
        try:
            return cls(config(**{key: value for key, value in (options | other).items() if key in known}))
        except (StrictDataclassError, TypeError, ValueError, RuntimeError):
            continue
    return cls(config())


def inputs(model: Any) -> Tensor:
    """Images or a clip for a small model, two of each."""
    config = getattr(model, "config", None)
    kind = type(model).__name__
    generator = torch.Generator().manual_seed(1)
    if hasattr(model, "trunk"):  # timm's in open_clip
        return inputs(model.trunk)
    if kind.startswith(("VideoMAE", "Vivit", "VJEPA2", "Timesformer")):
        shape: tuple[int, ...] = (2, 4, 3, 64, 64)
    elif kind.startswith("XCLIP"):
        shape = (2 * 4, 3, 64, 64)
    elif kind.startswith("Pixtral"):
        shape = (1, 3, 64, 64)
    elif config is None and kind != "NaFlexVit":  # which takes any size
        size = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))
        side = getattr(getattr(model, "patch_embed", model), "img_size", None) or getattr(model, "image_size", None)
        shape = (2, 3, *(side or size[1:]))
    else:
        shape = (2, 3, 64, 64)
    return torch.randn(shape, generator=generator)
