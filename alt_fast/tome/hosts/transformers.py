"""Hugging Face transformers (5 or newer): ViT, DeiT, CLIP vision, DINOv2 with or without registers, SigLIP."""

from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPVisionModel
from transformers.models.deit.modeling_deit import DeiTLayer, DeiTModel
from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer, Dinov2Model
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersLayer,
    Dinov2WithRegistersModel,
)
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipVisionModel
from transformers.models.vit.modeling_vit import ViTLayer, ViTModel

from alt_fast.errors import ArgumentError
from alt_fast.tome.block import MergingBlock, Tower
from alt_fast_kernels import proportional_attention


def attend(attention: nn.Module, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """Self-attention with separate projections: x [B, N, C] -> output [B, N, C], keys [B, N, H, D]."""
    shape = (*x.shape[:2], -1, attention.head_dim)
    q, k, v = (project(x).view(shape) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
    dropout = getattr(attention, "attention_dropout", None)
    dropout = attention.dropout if dropout is None else dropout
    out = proportional_attention(q, k, v, size, dropout_p=dropout if attention.training else 0.0)
    project = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
    return project(out), k


class MergingViTLayer(MergingBlock, ViTLayer):
    """ViT's layer."""

    host = ViTLayer

    def attention_branch(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
        out, key = attend(self.attention, self.layernorm_before(x), size)
        return self.dropout(out), key

    def mlp_norm(self) -> nn.Module:
        return self.layernorm_after

    def mlp_branch(self, normed: Tensor) -> Tensor:
        return self.dropout(self.mlp(normed))


class MergingDeiTLayer(MergingBlock, DeiTLayer):
    """DeiT's layer, made as ViT's."""

    host = DeiTLayer
    attention_branch = MergingViTLayer.attention_branch
    mlp_norm = MergingViTLayer.mlp_norm
    mlp_branch = MergingViTLayer.mlp_branch


class MergingCLIPLayer(MergingBlock, CLIPEncoderLayer):
    """CLIP's layer."""

    host = CLIPEncoderLayer

    def attention_branch(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
        return attend(self.self_attn, self.layer_norm1(x), size)

    def mlp_norm(self) -> nn.Module:
        return self.layer_norm2

    def mlp_branch(self, normed: Tensor) -> Tensor:
        return self.mlp(normed)


class MergingSiglipLayer(MergingBlock, SiglipEncoderLayer):
    """SigLIP's layer, made as CLIP's."""

    host = SiglipEncoderLayer
    attention_branch = MergingCLIPLayer.attention_branch
    mlp_norm = MergingCLIPLayer.mlp_norm
    mlp_branch = MergingCLIPLayer.mlp_branch


class MergingDinov2Layer(MergingBlock, Dinov2Layer):
    """DINOv2's layer."""

    host = Dinov2Layer

    def attention_branch(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
        out, key = attend(self.attention, self.norm1(x), size)
        return self.drop_path(self.layer_scale1(out)), key

    def mlp_norm(self) -> nn.Module:
        return self.norm2

    def mlp_branch(self, normed: Tensor) -> Tensor:
        return self.drop_path(self.layer_scale2(self.mlp(normed)))


class MergingDinov2RegistersLayer(MergingBlock, Dinov2WithRegistersLayer):
    """The layer of DINOv2 with registers, made as DINOv2's."""

    host = Dinov2WithRegistersLayer
    attention_branch = MergingDinov2Layer.attention_branch
    mlp_norm = MergingDinov2Layer.mlp_norm
    mlp_branch = MergingDinov2Layer.mlp_branch


MERGING: dict[type[nn.Module], type[MergingBlock]] = {
    ours.host: ours
    for ours in (
        MergingViTLayer,
        MergingDeiTLayer,
        MergingCLIPLayer,
        MergingSiglipLayer,
        MergingDinov2Layer,
        MergingDinov2RegistersLayer,
    )
}

PREFIX = {
    ViTModel: 1,
    DeiTModel: 2,
    CLIPVisionModel: 1,
    Dinov2Model: 1,
    Dinov2WithRegistersModel: 1,
    SiglipVisionModel: 0,
}
"""Class and distillation tokens of each tower; registers are counted from its configuration."""


def find_tower(module: nn.Module) -> Tower | None:
    """The tower that `module` is; ArgumentError for one that merging cannot honour."""
    if type(module).__name__.endswith("Backbone"):
        raise ArgumentError(
            f"{type(module).__name__} returns grids of every layer, whose tokens merging changes in number"
        )
    if type(module) not in PREFIX:
        return None
    blocks = [block for block in module.modules() if type(block) in MERGING]
    if not blocks:
        raise ArgumentError(
            f"{type(module).__name__} has no layers that apply_patch knows; transformers 5 or newer is needed"
        )
    protected = PREFIX[type(module)] + getattr(module.config, "num_register_tokens", 0)
    return Tower(blocks, protected, True, MERGING)
