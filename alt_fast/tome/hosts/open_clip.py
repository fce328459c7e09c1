"""open_clip: the VisionTransformer of its CLIP and CoCa models; towers of timm are timm's."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import nn

from alt_fast.errors import ArgumentError
from alt_fast.tome.attention import attend_multihead, check_multihead
from alt_fast.tome.block import MergingBlock
from alt_fast.tome.layout import Layout, Tower, part
from alt_fast_kernels import Rotary


def rotary_of(block: nn.Module, options: Mapping[str, Any], num_tokens: int) -> Rotary | None:
    """Of a tower that ALT gave rotary positions; open_clip's own have none."""
    return part(block, "attn.rope.rotary")


LAYOUT = Layout(
    attend_multihead, norm1="ln_1", after_attention=("ls_1",), norm2="ln_2", mlp=("mlp", "ls_2"), rotary=rotary_of
)


def find_tower(module: nn.Module) -> Tower | None:
    """The tower that `module` is; ArgumentError for one that merging cannot honour."""
    if not isinstance(module, VisionTransformer):
        return None
    blocks = list(module.transformer.resblocks)
    if any(isinstance(block, MergingBlock) for block in blocks):
        raise ArgumentError("this tower is a part of ALT and merges already: change its r with set_r")
    for block in blocks:
        if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
            raise ArgumentError(
                f"block of open_clip's tower must be ResidualAttentionBlock, got {type(block).__name__}"
            )
        check_multihead(block.attn)
    layout = replace(LAYOUT, sequence_first=not module.transformer.batch_first)
    return Tower(blocks, 1, {ResidualAttentionBlock: layout})
