"""Hugging Face transformers (5 or newer): image and video towers, alone or in any model composed of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from alt_fast.errors import ArgumentError
from alt_fast.tome.layout import Layout, SelfAttention, Tower, attentions
from alt_fast_kernels import Rotary


def given_tables(block: nn.Module, options: Mapping[str, Any], num_tokens: int) -> Rotary | None:
    """Cosines and sines that a model hands to its layers, [N, D] or [B, N, D] each, which turn halves."""
    tables = options.get("position_embeddings")
    if tables is None:
        return None
    cos, sin = (table.reshape(-1, *table.shape[-2:])[:, :, None] for table in tables)
    return Rotary(cos, sin, interleaved=False)


def vjepa2_rotary(block: Any, options: Mapping[str, Any], num_tokens: int) -> Rotary:
    """Frame, row and column turn a third of a head's channels each; what remains of it stays.

    The tables follow the published weights, in which the angles of a third are laid out once after the other, while
    the channels that they turn lie in pairs. Frames are as many as come, rows and columns those of the configuration.
    """
    attention = block.attention
    side, weight = attention.grid_size, block.norm1.weight  # which no quantisation replaces
    dtype = torch.promote_types(weight.dtype, torch.float32)
    token = torch.arange(num_tokens, device=weight.device)
    places = torch.stack((token // side**2, token // side % side, token % side), 1).to(dtype)
    width = attention.d_dim
    frequency = 10000.0 ** -(torch.arange(width // 2, dtype=dtype, device=weight.device) / (width / 2))
    angles = (places[:, :, None] * frequency).repeat(1, 1, 2).flatten(1)
    angles = nn.functional.pad(angles, (0, attention.attention_head_size - angles.shape[1]))[None, :, None]
    return Rotary(angles.cos(), angles.sin(), interleaved=True)


def xclip_attend(block: Any, x: Tensor, size: Tensor | None, rotary: Rotary | None) -> tuple[Tensor, Tensor]:
    """Attend with a message token more: the class tokens of all frames of a clip speak to each other first."""
    num_tokens, frames = x.shape[1], block.num_frames
    message = block.message_fc(x[:, 0]).unflatten(0, (-1, frames))
    said, _ = NAMED(block.message_attn, block.message_ln(message), None, None)
    message = (message + block.drop_path(said)).flatten(0, 1)[:, None]
    if size is not None:
        size = nn.functional.pad(size, (0, 1), value=1.0)
    out, key = NAMED(block.self_attn, block.layer_norm1(torch.cat((x, message), 1)), size, rotary)
    return out[:, :num_tokens], key[:, :num_tokens]


GIVEN: dict[str, Any] = {"rotary": given_tables, "options": ("position_embeddings",)}
SEPARATE = ("q_proj", "k_proj", "v_proj")
NAMED = SelfAttention(SEPARATE, scale=None, dropout="dropout", after=("out_proj",))
VIT_ATTENTION = SelfAttention(SEPARATE, scale=None, dropout="attention_dropout", after=("o_proj",))
CLIP = Layout(NAMED, "self_attn", "layer_norm1", (), "layer_norm2", ("mlp",))
VIT = Layout(VIT_ATTENTION, "attention", "layernorm_before", ("dropout",), "layernorm_after", ("mlp", "dropout"))
DINOV2 = Layout(
    VIT_ATTENTION, "attention", "norm1", ("layer_scale1", "drop_path"), "norm2", ("mlp", "layer_scale2", "drop_path")
)
DINOV3 = replace(DINOV2, attend=replace(VIT_ATTENTION, dropout="dropout"), **GIVEN)
NESTED_ATTENTION = SelfAttention(
    ("attention.query", "attention.key", "attention.value"),
    head_dim="attention.attention_head_size",
    scale=None,
    dropout="attention.dropout_prob",
    after=("output.dense", "output.dropout"),
)
NESTED = Layout(
    NESTED_ATTENTION,
    "attention",
    "layernorm_before",
    (),
    "layernorm_after",
    ("intermediate", "output.dense", "output.dropout"),
)
BLIP = replace(CLIP, attend=SelfAttention(dropout="dropout", after=("projection",)))
BLIP_2 = replace(CLIP, attend=SelfAttention(dropout="attention_dropout", after=("projection",)))
VJEPA2_ATTENTION = SelfAttention(
    ("query", "key", "value"), head_dim="attention_head_size", scale=None, dropout="dropout_prob", after=("proj",)
)
INTERNVL_ATTENTION = SelfAttention(
    SEPARATE,
    scale=None,
    dropout="attention_dropout",
    norm_all_heads=True,
    after=("projection_layer", "projection_dropout"),
)

LAYOUTS = {
    "ViTLayer": VIT,
    "DeiTLayer": VIT,
    "ViTMAELayer": VIT,
    "ViTMSNLayer": VIT,
    "IJepaLayer": VIT,
    "VivitLayer": VIT,
    "PixioLayer": replace(VIT, after_attention=("dropout", "drop_path"), mlp=("mlp", "dropout", "drop_path")),
    "DPTViTLayer": NESTED,
    "VideoMAELayer": NESTED,
    "VitPoseBackboneLayer": replace(NESTED, mlp=("mlp",)),
    "CLIPEncoderLayer": CLIP,
    "SiglipEncoderLayer": CLIP,
    "Siglip2EncoderLayer": CLIP,
    "AltCLIPEncoderLayer": CLIP,
    "ChineseCLIPVisionLayer": CLIP,
    "CLIPSegEncoderLayer": CLIP,
    "GitVisionEncoderLayer": CLIP,
    "MetaClip2EncoderLayer": CLIP,
    "OwlViTEncoderLayer": CLIP,
    "Owlv2EncoderLayer": CLIP,
    "BlipEncoderLayer": BLIP,
    "Blip2EncoderLayer": BLIP_2,
    "InstructBlipEncoderLayer": BLIP_2,
    "InstructBlipVideoEncoderLayer": BLIP_2,
    "MLCDEncoderLayer": replace(CLIP, **GIVEN),
    "XCLIPVisionEncoderLayer": replace(CLIP, attend=xclip_attend, attention="", norm1=None),
    "Aimv2EncoderLayer": Layout(NAMED, "attention", "rms_norm1", (), "rms_norm2", ("ffn",)),
    "Dinov2Layer": DINOV2,
    "Dinov2WithRegistersLayer": DINOV2,
    "DINOv3ViTLayer": DINOV3,
    "EomtLayer": replace(DINOV2, attend=NAMED),
    "EomtDinov3Layer": DINOV3,
    "Sapiens2Layer": DINOV3,
    "Tipsv2VisionLayer": DINOV2,
    "VJEPA2Layer": Layout(
        VJEPA2_ATTENTION,
        "attention",
        "norm1",
        ("drop_path",),
        "norm2",
        ("mlp", "drop_path"),
        vjepa2_rotary,
        returns_tuple=True,
    ),
    "InternVLVisionLayer": Layout(
        INTERNVL_ATTENTION,
        "attention",
        "layernorm_before",
        ("lambda_1",),
        "layernorm_after",
        ("mlp", "dropout", "lambda_2"),
    ),
    "PixtralAttentionLayer": Layout(
        replace(VIT_ATTENTION, dropout="dropout"),
        "attention",
        "attention_norm",
        (),
        "ffn_norm",
        ("feed_forward",),
        **GIVEN,
    ),
}
"""By the names of the layers' classes."""

PREFIX = {"DeiTLayer": 2} | dict.fromkeys(
    (
        *("SiglipEncoderLayer", "Siglip2EncoderLayer", "IJepaLayer", "VideoMAELayer", "VJEPA2Layer"),
        *("PixtralAttentionLayer", "Aimv2EncoderLayer", "VitPoseBackboneLayer"),
    ),
    0,
)
"""Class and distillation tokens before the patches, where it is not one class token; registers are counted besides."""

JOINED = ("EomtLayer", "EomtDinov3Layer")
"""Layers of models whose queries join the patches before the last `num_blocks` layers, which do not merge."""

OPTIONS = (
    *("output_hidden_states", "output_router_logits", "return_dict", "use_cache"),
    *("num_items_in_batch", "image_sizes", "interpolate_pos_encoding"),
)
"""What models hand to all of their layers though it is not for them, but for what is around them."""

REFUSED = {
    "Swin": "attends in windows",
    "Donut": "attends in windows",
    "Hiera": "attends in windows",
    "Sam": "attends in windows",
    "VitDet": "attends in windows",
    "LwDetr": "attends in windows",
    "RfDetr": "attends in windows",
    "DeepseekOcr2": "attends in windows",
    "Exaone4_5": "attends in windows",
    "MiniCPMOcr": "attends in windows",
    "MiniCPMV4": "attends in windows",
    "PPFormulaNet": "attends in windows",
    "UnlimitedOcr": "attends in windows",
    "MaskFormerSwin": "attends in windows",
    "MobileViT": "attends across patches",
    "Beit": "adds relative position bias",
    "Data2VecVision": "adds relative position bias",
    "Pvt": "is a hierarchy of resolutions",
    "Segformer": "is a hierarchy of resolutions",
    "GLPN": "is a hierarchy of resolutions",
    "Levit": "is a hierarchy of resolutions",
    "SwiftFormer": "is a hierarchy of resolutions",
    "GroupViT": "groups its tokens itself",
    "Qwen2VL": "packs its images into one sequence, and groups four patches at its end",
    "HYV4VL": "packs its images into one sequence, and groups four patches at its end",
    "Qwen2_5_VL": "attends in windows, and groups four patches at its end",
    "Qwen2_5_Vision": "attends in windows, and groups four patches at its end",
    "Timesformer": "attends over space and time in turns",
    "Yolos": "adds positions in every layer",
}
"""Models by the beginning of their names, and what they do that merged tokens cannot honour."""


def find_tower(module: nn.Module) -> Tower | None:
    """The tower whose layers `module` holds in a list; ArgumentError for a model that merging cannot honour.

    Text towers and decoders are none.
    """
    name = type(module).__name__
    for start, reason in REFUSED.items():
        if name.startswith(start) and isinstance(module, PreTrainedModel):
            raise ArgumentError(f"transformers' {name} is not taken: it {reason}")
    if "Decoder" in name or "Predictor" in name:
        return None
    for child in module.children():
        blocks = list(child) if isinstance(child, nn.ModuleList) else []
        if not blocks or any(type(block).__name__ not in LAYOUTS or not _is_own(block) for block in blocks):
            continue
        config = next((part.config for part in blocks[0].modules() if hasattr(part, "config")), None)
        if config is None:
            config = module.config
        if "Text" in type(config).__name__:
            continue
        layer = type(blocks[0])
        kind = layer.__name__
        if kind == "VitPoseBackboneLayer" and config.num_experts > 1:
            raise ArgumentError(
                f"transformers' {name} is not taken: its MLPs choose experts by the data set of an image"
            )
        if kind in JOINED:
            num_alone: int = len(blocks) - config.num_blocks
            if num_alone <= 0:
                raise ArgumentError(f"transformers' {name} is not taken: its queries join before the first layer")
            blocks = blocks[:num_alone]
        prefix = getattr(config, "n_cls_tokens", PREFIX.get(kind, 1))
        layout = LAYOUTS[kind]
        for block in blocks:
            check_attention(block, layout)
        layout = replace(layout, options=(*layout.options, *OPTIONS), check_attention=check_function)
        return Tower(blocks, prefix + (getattr(config, "num_register_tokens", None) or 0), {layer: layout})
    return None


def check_attention(block: nn.Module, layout: Layout) -> None:
    """Raise ArgumentError where a layer's attention, or the function that it attends by, is not transformers' own."""
    for _, module in attentions(block, layout):
        if not _is_own(module):
            kind = type(module).__name__
            raise ArgumentError(f"attention of {type(block).__name__} must be transformers' own, got {kind}")
        check_function(module)


def check_function(attention: nn.Module) -> None:
    """Raise ArgumentError where the function that an attention attends by is not transformers' own."""
    name = getattr(getattr(attention, "config", None), "_attn_implementation", None) or "eager"
    function = ALL_ATTENTION_FUNCTIONS.get(name)
    if function is not None and "/" not in name and not function.__module__.startswith("transformers."):
        raise ArgumentError(f"{type(attention).__name__} attends by {name!r}, which transformers does not bring")


def _is_own(module: nn.Module) -> bool:
    return type(module).__module__.startswith("transformers.")
