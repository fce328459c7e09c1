"""torchvision: VisionTransformer."""

from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer

from alt_fast.errors import ArgumentError
from alt_fast.tome.attention import attend_multihead, check_multihead
from alt_fast.tome.block import MergingBlock, Tower


class TorchvisionBlock(MergingBlock, EncoderBlock):
    """torchvision's EncoderBlock."""

    host = EncoderBlock

    def attention_branch(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
        out, key = attend_multihead(self.self_attention, self.ln_1(x), size)
        return self.dropout(out), key

    def mlp_norm(self) -> nn.Module:
        return self.ln_2

    def mlp_branch(self, normed: Tensor) -> Tensor:
        return self.mlp(normed)


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
    return Tower(blocks, 1, False, {EncoderBlock: TorchvisionBlock})
