"""OpenAI's `clip` package: the VisionTransformer of its CLIP."""

from clip.model import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from alt_fast.errors import ArgumentError
from alt_fast.tome.attention import attend_multihead
from alt_fast.tome.block import MergingBlock, Tower


class ClipBlock(MergingBlock, ResidualAttentionBlock):
    """clip's ResidualAttentionBlock, which takes [N, B, C]."""

    host = ResidualAttentionBlock
    sequence_first = True

    def attention_branch(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
        return attend_multihead(self.attn, self.ln_1(x), size)

    def mlp_norm(self) -> nn.Module:
        return self.ln_2

    def mlp_branch(self, normed: Tensor) -> Tensor:
        return self.mlp(normed)


def find_tower(module: nn.Module) -> Tower | None:
    """The tower that `module` is; ArgumentError for one with an attention mask."""
    if not isinstance(module, VisionTransformer):
        return None
    blocks = list(module.transformer.resblocks)
    if any(block.attn_mask is not None for block in blocks):
        raise ArgumentError("clip's VisionTransformer has an attention mask, which merged tokens cannot honour")
    return Tower(blocks, 1, False, {ResidualAttentionBlock: ClipBlock})
