"""timm: VisionTransformer, with LayerScale, registers, qk-norm, DropPath, pooled heads; and its distilled form."""

from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from alt_fast.errors import ArgumentError
from alt_fast.tome.attention import ToMeAttention
from alt_fast.tome.block import BlockSettings, MergingBlock, Tower

REFUSED = (
    "timm.models.beit",
    "timm.models.eva",
    "timm.models.swin",
    "timm.models.swin_transformer",
    "timm.models.vision_transformer_relpos",
    "timm.models.vision_transformer_sam",
)
"""Relatives whose attention uses windows, relative position bias or rotary positions."""


class TimmBlock(MergingBlock, Block):
    """timm's Block; its attention becomes a ToMeAttention with the same parameters."""

    host = Block

    def attention_branch(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
        out, key = self.attn(self.norm1(x), size)
        return self.drop_path1(self.ls1(out)), key

    def mlp_norm(self) -> nn.Module:
        return self.norm2

    def mlp_branch(self, normed: Tensor) -> Tensor:
        return self.drop_path2(self.ls2(self.mlp(normed)))

    @classmethod
    def patch(cls, block: nn.Module, settings: BlockSettings) -> None:
        super().patch(block, settings)
        block.attn.__class__ = ToMeAttention

    def unpatch(self) -> None:
        self.attn.__class__ = Attention
        super().unpatch()


def find_tower(module: nn.Module) -> Tower | None:
    """The tower that `module` is; ArgumentError for one that merging cannot honour."""
    origin = type(module).__module__
    if origin in REFUSED and hasattr(module, "patch_embed"):
        raise ArgumentError(
            f"timm's {type(module).__name__} attends in windows or by relative or rotary positions, "
            "which merged tokens lose"
        )
    if not isinstance(module, VisionTransformer):
        return None
    if type(module).forward_features not in (
        VisionTransformer.forward_features,
        VisionTransformerDistilled.forward_features,
    ):
        raise ArgumentError(
            f"{type(module).__name__} overrides forward_features; write its block with alt_fast.ToMeAttention"
        )
    return tower_of(module)


def tower_of(module: VisionTransformer) -> Tower:
    """The tower of a VisionTransformer whose forward_features runs the blocks one after the other."""
    for block in module.blocks:
        if type(block) is not Block:
            raise ArgumentError(f"block of {type(module).__name__} must be timm's Block, got {type(block).__name__}")
        if type(block.attn) is not Attention:
            raise ArgumentError(
                f"attention of {type(module).__name__} must be timm's Attention, got {type(block.attn).__name__}"
            )
    pooled = module.attn_pool is not None or (bool(module.global_pool) and module.global_pool != "token")
    pooled = pooled and not isinstance(module, VisionTransformerDistilled)
    return Tower(list(module.blocks), module.num_prefix_tokens, pooled, {Block: TimmBlock})
