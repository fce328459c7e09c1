"""timm: VisionTransformer and its relatives, Eva and NaFlexVit, whose blocks differ in attention, norms and MLP."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from alt_fast.errors import ArgumentError
from alt_fast.tome.block import Patched, host_of
from alt_fast.tome.layout import TIMMS_ATTENTION, Layout, Tower
from alt_fast_kernels import Rotary, proportional_attention

REFUSED = {
    "Beit": "adds relative position bias",
    "VisionTransformerRelPos": "adds relative position bias",
    "VisionTransformerSAM": "attends in windows",
    "SwinTransformer": "attends in windows",
    "SwinTransformerV2": "attends in windows",
    "SwinTransformerV2Cr": "attends in windows",
    "VOLO": "attends in windows",
    "Hiera": "pools its tokens from stage to stage",
    "HieraDet": "pools its tokens from stage to stage",
    "PoolingVisionTransformer": "pools its tokens from stage to stage",
    "Cait": "mixes its heads' scores",
    "ConVit": "adds scores by position",
    "CrossVit": "has two streams of tokens",
    "TNT": "attends inside of patches, too",
    "Xcit": "attends between channels",
    "DeepseekVitEncoder": "has blocks that no layout describes",
    "Gemma4VitEncoder": "has blocks that no layout describes",
    "Qwen3VitEncoder": "has blocks that no layout describes",
}
"""Relatives by the names of their classes, and what they do that merged tokens cannot honour."""

SEPARATE = replace(TIMMS_ATTENTION, qkv=("q_proj", "k_proj", "v_proj"))


def attend(attention: nn.Module, x: Tensor, size: Tensor | None, rotary: Rotary | None) -> tuple[Tensor, Tensor]:
    """Attend as timm's Attention, AttentionRope, EvaAttention or DiffAttention do."""
    if hasattr(attention, "sub_norm"):
        return attend_differentially(attention, x, size)
    return (SEPARATE if attention.qkv is None else TIMMS_ATTENTION)(attention, x, size, rotary)


def attend_differentially(attention: Any, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """The difference of two attentions with common values (arXiv 2410.05258, eq. 1), twice as wide as their queries."""
    q, k, v = attention.qkv(x).chunk(3, -1)
    out, key = _difference(attention, q, k, v, size)
    return attention.proj_drop(attention.proj(attention.norm(out))), key


def _difference(module: Any, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
    dim = module.head_dim
    q, k = module.q_norm(q.unflatten(-1, (-1, dim))), module.k_norm(k.unflatten(-1, (-1, dim)))
    v = v.unflatten(-1, (-1, 2 * dim))
    wide = nn.functional.pad(torch.stack((q, k)), (0, dim))  # zeros change no score
    dropout = module.attn_drop_p if module.training else 0.0
    first, second = (
        proportional_attention(wide[0, :, :, i::2], wide[1, :, :, i::2], v, size, module.scale, dropout)
        for i in range(2)
    )
    out = first - module._compute_lambda().type_as(q) * second
    out = module.sub_norm(out.unflatten(-1, (-1, 2 * dim))) * (1 - module.lambda_init)
    return out.flatten(2), k


def attend_and_mlp(block: Any, normed: Tensor, size: Tensor | None, rotary: Rotary | None) -> tuple[Tensor, Tensor]:
    """Both branches of a parallel block, which share one projection (arXiv 2302.05442)."""
    hidden, q, k, v = block.in_proj(normed).split(block.in_split, -1)
    hidden = hidden if block.mlp_bias is None else hidden + block.mlp_bias
    if hasattr(block, "sub_norm"):
        out, key = _difference(block, q, k, v, size)
    else:
        q, key, v = (y.unflatten(-1, (block.num_heads, -1)) for y in (q, k, v))
        q, key = block.q_norm(q), block.k_norm(key)
        out = proportional_attention(q, key, v, size, block.scale, block.attn_drop.p if block.training else 0.0)
    hidden = block.mlp_drop(block.mlp_act(hidden))
    if block.out_proj is not None:
        return block.out_proj(torch.cat((out, hidden), -1)), key
    return block.attn_out_proj(out) + block.mlp_out_proj(hidden), key


def attend_in_parallel(attentions: Any, x: Tensor, size: Tensor | None, rotary: Rotary | None) -> tuple[Tensor, Tensor]:
    """The sum of several attentions; all their keys are matched."""
    branches, keys = [], []
    for branch in attentions:
        out, key = attend(branch.attn, branch.norm(x), size, rotary)
        branches.append(branch.drop_path(branch.ls(out)))
        keys.append(key)
    return torch.stack(branches).sum(0), torch.cat(keys, 2)


def mlps_in_parallel(block: Any, x: Tensor) -> Tensor:
    """The sum of several MLPs."""
    return torch.stack([mlp(x) for mlp in block.ffns]).sum(0)


def rotary_of(block: Any, options: Mapping[str, Any], num_tokens: int) -> Rotary | None:
    """timm's table of sines and cosines: [N, 2 * D], [H, N, 2 * D] or [B, H or 1, N, 2 * D]."""
    table = options.get("rope")
    if table is None:
        return None
    sin, cos = table.reshape(-1, *table.shape[-3:]).chunk(2, -1) if table.ndim > 2 else table[None, None].chunk(2, -1)
    return Rotary(cos.transpose(1, 2), sin.transpose(1, 2), not getattr(block.attn, "rotate_half", False))


EVA = Layout(
    attend,
    after_attention=("gamma_1", "drop_path1"),
    mlp=("mlp", "gamma_2", "drop_path2"),
    rotary=rotary_of,
    options=("rope",),
)
POST_NORM = Layout(
    attend,
    norm1=None,
    after_attention=("norm1", "drop_path1"),
    norm2=None,
    mlp=("mlp", "norm2", "drop_path2"),
    rotary=rotary_of,
    options=("rope",),
)
PARALLEL = Layout(
    attend_and_mlp, attention="", norm1="in_norm", after_attention=("ls", "drop_path"), norm2=None, mlp=()
)

LAYOUTS = {
    "Block": Layout(attend, rotary=rotary_of, options=("rope",)),
    "ResPostBlock": POST_NORM,
    "EvaBlock": EVA,
    "EvaBlockPostNorm": POST_NORM,
    "ParallelScalingBlock": PARALLEL,
    "DiffParallelScalingBlock": PARALLEL,
    "ParallelThingsBlock": Layout(
        attend_in_parallel, attention="attns", norm1=None, after_attention=(), norm2=None, mlp=mlps_in_parallel
    ),
}
"""By the names of timm's blocks: its older versions lack some."""

ATTENTIONS = ("Attention", "AttentionRope", "EvaAttention", "DiffAttention")
TOWERS = ("Eva", "NaFlexVit")
"""Besides VisionTransformer."""


def find_tower(module: nn.Module) -> Tower | None:
    """The tower that `module` is; ArgumentError for one that merging cannot honour."""
    host = host_of(module)
    name = host.__name__
    if name in REFUSED and _is_timms(module):
        raise ArgumentError(f"timm's {name} is not taken: it {REFUSED[name]}")
    if not isinstance(module, VisionTransformer) and not (_is_timms(module) and name in TOWERS):
        return None
    if issubclass(host, VisionTransformer) and host.forward_features not in (
        VisionTransformer.forward_features,
        VisionTransformerDistilled.forward_features,
    ):
        raise ArgumentError(f"{name} overrides forward_features; write its block with alt_fast.ToMeAttention")
    return tower_of(module)


def tower_of(module: Any) -> Tower:
    """The tower of a model whose blocks run one after the other, whatever it does before and behind them."""
    name = host_of(module).__name__
    layouts = {}
    for block in module.blocks:
        kind = type(block).__name__
        if isinstance(block, Patched):
            raise ArgumentError(f"the blocks of this {name} merge already: ask before apply_patch")
        if kind not in LAYOUTS or not _is_timms(block):
            raise ArgumentError(f"block of {name} must be one of timm's {', '.join(LAYOUTS)}, got {kind}")
        for path, attention in block.named_modules():
            kind_of_attention = type(attention).__name__
            attends = path.rpartition(".")[2] == "attn" or "Attention" in kind_of_attention
            if attends and not (_is_timms(attention) and kind_of_attention in ATTENTIONS):
                raise ArgumentError(
                    f"attention of {name} must be one of timm's {', '.join(ATTENTIONS)}, got {kind_of_attention}"
                )
        layouts[type(block)] = LAYOUTS[kind]
    if getattr(module, "rope_mixed", False) or getattr(module, "rope_is_mixed", False):
        layouts = {cls: replace(layout, per_layer_rotary=True) for cls, layout in layouts.items()}
    class_token = getattr(getattr(module, "embeds", module), "cls_token", None) is not None  # NaFlexVit has embeds
    return Tower(list(module.blocks), module.num_prefix_tokens, layouts, class_token)


def _is_timms(module: nn.Module) -> bool:
    return host_of(module).__module__.startswith("timm.")
