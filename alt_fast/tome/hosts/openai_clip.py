"""OpenAI's `clip` package: the VisionTransformer of its CLIP."""

from clip.model import ResidualAttentionBlock, VisionTransformer
from torch import nn

from alt_fast.errors import ArgumentError
from alt_fast.tome.attention import attend_multihead, check_multihead
from alt_fast.tome.layout import Layout, Tower

LAYOUT = Layout(attend_multihead, norm1="ln_1", after_attention=(), norm2="ln_2", mlp=("mlp",), sequence_first=True)


def find_tower(module: nn.Module) -> Tower | None:
    """The tower that `module` is; ArgumentError for one with an attention mask."""
    if not isinstance(module, VisionTransformer):
        return None
    blocks = list(module.transformer.resblocks)
    if any(block.attn_mask is not None for block in blocks):
        raise ArgumentError("clip's VisionTransformer has an attention mask, which merged tokens cannot honour")
    for block in blocks:
        check_multihead(block.attn)
    return Tower(blocks, 1, {ResidualAttentionBlock: LAYOUT})
