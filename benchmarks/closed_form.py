"""MACs of a vision transformer with token merging, and of ALT, from shapes alone."""

from dataclasses import dataclass

from alt_fast_kernels import max_r
from alt_fast_kernels.cost import align_cost, attention_cost, match_cost
from alt_fast_kernels.counting import NORM_FLOPS


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
    "vit_large_patch16_224": ViT(16, 1024, 24, 16),
}


def vit_macs(vit: ViT, r: int) -> int:
    """MACs per image of patch embedding, attention, matching and MLPs; without norms, biases and the head."""
    return sum(encoder_macs(vit, r).values())


def encoder_macs(vit: ViT, r: int, tuning: str = "finetune", frames: int = 1) -> dict[str, int]:
    """MACs of `frames` frames by part. tuning: AIM's adapters, "s", "sm" or "stm", beside the plain tower's parts."""
    head_dim, width = vit.width // vit.num_heads, vit.width
    parts = {"patches": (vit.image // vit.patch) ** 2 * 3 * vit.patch**2 * width, "matching": 0}
    blocks = adapters = 0
    adapter = 2 * width * (width // 4)  # down and up
    num_adapters = {"s": 1, "sm": 2, "stm": 3}.get(tuning, 0)
    for tokens, merged in token_counts(vit, r):
        left = tokens - merged
        blocks += tokens * 4 * width**2 + attention_cost(1, tokens, tokens, vit.num_heads, head_dim, 0).macs
        blocks += left * 8 * width**2
        if merged:
            parts["matching"] += match_cost(1, tokens, vit.num_heads, head_dim, 1, 0).macs
        adapters += adapter * (tokens * (num_adapters >= 1) + left * (num_adapters >= 2))
        if tuning == "stm":  # the block's attention once more, along the frames of every token
            over_time = attention_cost(tokens, frames, frames, vit.num_heads, head_dim, 0).macs
            adapters += tokens * (4 * width**2 + adapter) + over_time // frames
    parts |= {"blocks": blocks, "adapters": adapters}
    return {part: macs * frames for part, macs in parts.items()}


def token_counts(vit: ViT, r: int) -> list[tuple[int, int]]:
    """Tokens that enter each block, and how many it merges away."""
    tokens, counts = (vit.image // vit.patch) ** 2 + 1, []
    for _ in range(vit.depth):
        counts.append((tokens, min(r, max_r(tokens, 1))))
        tokens -= counts[-1][1]
    return counts


def encoder_norm_elements(vit: ViT, r: int, tuning: str = "finetune") -> int:
    """Elements per frame that go through a LayerNorm: before the blocks, twice (STM: three times) in each, after."""
    counts = token_counts(vit, r)
    inside = sum(tokens * (2 if tuning == "stm" else 1) + tokens - merged for tokens, merged in counts)
    return (counts[0][0] + inside + counts[-1][0] - counts[-1][1]) * vit.width


@dataclass(frozen=True)
class ALTShape:
    """What ALT's MACs depend on. entities: K; 0 where the frame tokens query. regions: align all tokens, or one."""

    vit: ViT
    frames: int
    r: int
    joint: int
    depth: int
    classes: int
    entities: int
    regions: bool = True
    tuning: str = "finetune"


def alt_macs(shape: ALTShape) -> dict[str, int]:
    """MACs of one view by part: matmuls and convolutions, and fvcore's five FLOPs per normalised element."""
    parts = encoder_macs(shape.vit, shape.r, shape.tuning, shape.frames)
    counts = token_counts(shape.vit, shape.r)
    frames, d = shape.frames, shape.joint
    left = frames * (counts[-1][0] - counts[-1][1])
    aligned = left if shape.regions else frames
    parts["projection"] = left * shape.vit.width * d
    parts["alignment"] = align_cost(aligned, shape.entities, d, 0).macs if shape.entities else 0
    attend = attention_cost(1, frames, frames, 1, d, 0).macs
    block = frames * (3 * d + 3 * 8 * d**2 + 2 * 4 * d**2) + 2 * attend  # convolution, MLPs, projections, attention
    parts["decoder"] = frames * 8 * d**2 + shape.depth * block + 8 * d**2  # the query MLP, blocks, the video MLP
    parts["classes"] = d * shape.classes
    elements = frames * encoder_norm_elements(shape.vit, shape.r, shape.tuning)
    elements += shape.depth * frames * d * 6 + d
    return parts | {"norms": NORM_FLOPS * elements}
