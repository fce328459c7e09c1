"""open_clip's image tower with axial rotary positions in place of those that are added to patches."""

from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from alt_fast.tome.attention import attend_multihead
from alt_fast.tome.rotary import begin, rotation
from alt_fast_kernels import Rotary

BASE = 100.0
"""Pair i of n turns by BASE ** (-i / n) radians a patch: the first by 1, so that the six rows of the default job's grid
lie within a whole turn of it, the last by 0.02, next to nothing. 10,000, for long texts, would leave most pairs still.
"""


class AxialPositions(nn.Module):
    """Tables of a grid of patches, made once: half of a head's pairs turn by the row, half by the column.

    They are the same for every head, follow the weights to their device, and are no part of a state_dict.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, grid: tuple[int, int], head_dim: int) -> None:
        super().__init__()
        pairs = head_dim // 4  # for each axis
        frequencies = BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        places = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in grid))  # [N, 2]
        angles = (places[:, :, None] * frequencies).flatten(1).repeat_interleave(2, 1)[None, :, None]  # [1, N, 1, D]
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    @property
    def rotary(self) -> Rotary:
        """Of the patches alone."""
        return Rotary(self.cos, self.sin, interleaved=True)


class RotaryAttention(nn.MultiheadAttention):
    """Self-attention of a class token, which does not turn, and patches, which do. rope: `AxialPositions`."""

    rope: AxialPositions

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> tuple[Tensor, None]:
        """query: [B, N, C]. open_clip's block gives it as key and value too, and no mask."""
        turns = begin(self.rope.rotary, query.shape[1], 1, query.dtype, "mean")
        return attend_multihead(self, query, None, rotation(turns, "mean"))[0], None


class RotaryTower(VisionTransformer):
    """Adds no positions to patches; its attentions turn queries and keys instead. rope: `AxialPositions`."""

    rope: AxialPositions

    def _embeds(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        return self.ln_pre(self.patch_dropout(torch.cat([class_token, x], dim=1)))

    @classmethod
    def take_over(cls, visual: VisionTransformer) -> None:
        """Turn open_clip's tower into this class. Its other parameters stay, with their names."""
        visual.__class__ = cls
        visual.positional_embedding = None
        attentions = [block.attn for block in visual.transformer.resblocks]
        visual.rope = AxialPositions(visual.grid_size, attentions[0].head_dim)
        for attention in attentions:
            attention.__class__ = RotaryAttention
            attention.rope = visual.rope
