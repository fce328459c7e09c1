"""MACs of a vision transformer with token merging, from shapes alone."""

from dataclasses import dataclass

from alt_fast_kernels import max_r
from alt_fast_kernels.cost import attention_cost, match_cost


@dataclass(frozen=True)
class ViT:
    """Shape of a plain vision transformer with one class token and an MLP of four times the width."""

    patch: int
    width: int
    depth: int
    num_heads: int
    image: int = 224


VITS = {
    "vit_base_patch16_224": ViT(16, 768, 12, 12),
    "vit_large_patch14_224": ViT(14, 1024, 24, 16),
}


def vit_macs(vit: ViT, r: int) -> int:
    """MACs per image of patch embedding, attention, matching and MLPs; without norms, biases and the head."""
    head_dim = vit.width // vit.num_heads
    patches = (vit.image // vit.patch) ** 2
    total = patches * 3 * vit.patch**2 * vit.width
    tokens = patches + 1
    for _ in range(vit.depth):
        total += tokens * 4 * vit.width**2 + attention_cost(1, tokens, tokens, vit.num_heads, head_dim, 0).macs
        merged = min(r, max_r(tokens, 1))
        if merged:
            total += match_cost(1, tokens, vit.num_heads, head_dim, 1, 0).macs
        tokens -= merged
        total += tokens * 8 * vit.width**2
    return total
