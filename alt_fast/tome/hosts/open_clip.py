"""open_clip: the VisionTransformer of its CLIP and CoCa models."""

from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from alt_fast.errors import ArgumentError
from alt_fast.tome.attention import attend_multihead, check_multihead
from alt_fast.tome.block import MergingBlock, Tower


class OpenClipBlock(MergingBlock, ResidualAttentionBlock):
    """open_clip's ResidualAttentionBlock."""

    host = ResidualAttentionBlock

    def attention_branch(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
        out, key = attend_multihead(self.attn, self.ln_1(x), size)
        return self.ls_1(out), key

    def mlp_norm(self) -> nn.Module:
        return self.ln_2

    def mlp_branch(self, normed: Tensor) -> Tensor:
        return self.ls_2(self.mlp(normed))


class SequenceFirstBlock(OpenClipBlock):
    """For towers built with batch_first=False."""

    sequence_first = True


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
    reads_patches = module.attn_pool is not None or module.pool_type != "tok" or module.output_tokens
    ours = OpenClipBlock if module.transformer.batch_first else SequenceFirstBlock
    return Tower(blocks, 1, reads_patches, {ResidualAttentionBlock: ours})
