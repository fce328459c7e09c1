"""torchvision: VisionTransformer, and that of SWAG's repository, which has its names."""

from dataclasses import replace

from torch import nn
from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer

from alt_fast.errors import ArgumentError
from alt_fast.tome.attention import attend_multihead, check_multihead
from alt_fast.tome.layout import Layout, Tower

LAYOUT = Layout(
    attend_multihead,
    attention="self_attention",
    norm1="ln_1",
    after_attention=("dropout",),
    norm2="ln_2",
    mlp=("mlp",),
)


def find_tower(module: nn.Module) -> Tower | None:
    """The tower that `module` is."""
    if type(module).__name__ == "SwinTransformer":
        raise ArgumentError("torchvision's SwinTransformer attends in windows, which merged tokens lose")
    if not isinstance(module, VisionTransformer):
        return None
    blocks = list(module.encoder.layers)
    for block in blocks:
        if type(block) is not EncoderBlock:
            raise ArgumentError(f"block of torchvision's ViT must be EncoderBlock, got {type(block).__name__}")
        check_multihead(block.self_attention)
    return Tower(blocks, 1, {EncoderBlock: LAYOUT})


def is_swag(module: nn.Module) -> bool:
    """Whether it is a VisionTransformer of SWAG's repository, known by names: no package brings it."""
    named = any(cls.__name__ == "VisionTransformer" for cls in type(module).__mro__)
    return named and hasattr(module, "trunk_output")


def find_swag(module: nn.Module) -> Tower | None:
    """The tower that a model of SWAG's repository is."""
    if not is_swag(module):
        return None
    blocks = list(module.encoder.layers)
    for block in blocks:
        if type(block).__name__ != "EncoderBlock":
            raise ArgumentError(f"block of SWAG's ViT must be EncoderBlock, got {type(block).__name__}")
        check_multihead(block.self_attention)
    has_class_token = module.classifier == "token"
    layouts = {type(block): replace(LAYOUT, sequence_first=True) for block in blocks}
    return Tower(blocks, int(has_class_token), layouts, has_class_token)
