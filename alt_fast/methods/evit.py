"""EViT: what the class token attends to stays, the rest becomes one token (Liang et al., arXiv 2202.07800)."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt_fast.errors import ArgumentError
from alt_fast.methods.plans import plan_to, removable, rescaled
from alt_fast.tome.layout import packed_projection, part
from alt_fast.tome.tokens import Attended, Tokens
from alt_fast_kernels import Rotary, rotate
from alt_fast_kernels.dispatch import without_autocast


def evit_step(at: Attended) -> tuple[Tokens, Tensor]:
    """Fuse the r + 1 tokens that the class token attends to least into their sum, weighted by that attention.

    r: tokens to remove, at most half of those that are not protected; the paper's keep rate is 1 - (r + 1) / n, of n.
    Attention is the mean over heads; of equal ones the lower index stays. The weights carry no gradient here, and the
    sum stands where the first of its tokens stood.

    Raises ArgumentError without a class token, and for an attention whose queries are not found.
    """
    r = removable(at)
    if at.protected == 0 or not at.class_token:
        raise ArgumentError("EViT needs a class token, and this model has none: it ranks patches by its attention")
    if r == 0:
        return at.keep()
    attention = class_attention(at)
    rest = attention.argsort(dim=1, descending=True, stable=True)[:, -r - 1 :]
    little, rest = attention.gather(1, rest), at.protected + rest
    first = rest.amin(1, keepdim=True)
    size = at.tokens.sizes()
    token = torch.arange(size.shape[1], device=size.device).expand_as(size)
    plan = plan_to(token.scatter(1, rest, first.expand_as(rest)), size.shape[1] - r)
    weight = torch.ones_like(size).scatter(1, rest, little.to(size.dtype))
    tokens, _ = replace(at, norm=None).merge(plan, weight)
    total = weight.new_ones(len(size), plan.num_slots)
    total = total.scatter(1, plan.slot.gather(1, first).long(), little.sum(1, keepdim=True).to(size.dtype))
    return rescaled(at, tokens, total)


@torch.no_grad()
def class_attention(at: Attended) -> Tensor:
    """How much the first token attends to each that is not protected, the mean over heads: [B, N - protected] fp32."""
    query, key = class_query(at), at.key
    if at.rotary is not None:
        cos, sin, interleaved = at.rotary
        query, key = rotate(query, Rotary(cos[:, :1], sin[:, :1], interleaved)), rotate(key, at.rotary)
    dtype = torch.promote_types(key.dtype, torch.float32)
    with without_autocast(key):
        scale = getattr(at.attention, "scale", None) or key.shape[-1] ** -0.5
        scores = query.to(dtype).transpose(1, 2) * scale @ key.to(dtype).permute(0, 2, 3, 1)  # [B, H, 1, N]
        return scores.softmax(-1).mean((1, 2))[:, at.protected :]


def class_query(at: Attended) -> Tensor:
    """The query [B, 1, H, D] of the first token, as the host projects and norms it. Raises ArgumentError."""
    attention: Any = at.attention
    assert at.normed is not None
    x, head_dim = at.normed[:, :1], at.key.shape[-1]
    if isinstance(attention, nn.MultiheadAttention):
        width, bias = attention.embed_dim, attention.in_proj_bias
        query = F.linear(x, attention.in_proj_weight[:width], None if bias is None else bias[:width])
    elif isinstance(part(attention, "qkv"), nn.Module) and not hasattr(attention, "sub_norm"):
        query = packed_projection(attention, "qkv", x).chunk(3, -1)[0]
    elif isinstance(part(attention, "q_proj"), nn.Module):
        query = attention.q_proj(x)
    else:
        raise ArgumentError(
            "EViT needs the class token's query: it knows attentions with a projection qkv or q_proj, and "
            f"nn.MultiheadAttention, not {type(attention).__name__}"
        )
    norm = part(attention, "q_norm")
    if norm is None:
        return query.unflatten(-1, (-1, head_dim))
    all_heads = getattr(norm, "weight", None) is not None and len(norm.weight) > head_dim
    return norm(query).unflatten(-1, (-1, head_dim)) if all_heads else norm(query.unflatten(-1, (-1, head_dim)))
