"""Token merging in a transformer block: the schedule, attention that knows sizes, and the merge behind it."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

from alt_fast_kernels import (
    compose,
    match,
    max_r,
    merge,
    proportional_attention,
    proportional_attention_qkvpacked,
)
from alt_fast_kernels.dispatch import takes_kernel

Reduction = int | float | Sequence[int] | tuple[int, float]
"""r for every layer, a fraction of the tokens of every layer, one r per layer, or (r, inflect)."""


def merge_schedule(r: Reduction, num_layers: int) -> list[int | float]:
    """Tokens to remove in each of `num_layers` layers (ToMe, section 4.3 and appendix D).

    r: an int for every layer; a float in [0, 0.5], the fraction of unprotected tokens that every layer removes; a
        sequence of `num_layers` ints; or (r, inflect) with a float inflect in [-1, 1], which changes linearly from
        r * (1 - inflect) in the first layer to r * (1 + inflect) in the last (-1: all the merging early, 0: constant,
        1: late).
    Raises ValueError when r is negative, of another length, or inflect is out of range; TypeError when it is no number.
    """
    schedule: list[int | float]
    if isinstance(r, float):
        if not 0 <= r <= 0.5:
            raise ValueError(f"r as a fraction must be in [0, 0.5], got {r}: a layer can merge half of its tokens")
        return [r] * num_layers
    if isinstance(r, int):
        schedule = [r] * num_layers
    elif not isinstance(r, Sequence) or isinstance(r, str):
        raise TypeError(f"r must be a number or a sequence of numbers, got {type(r).__name__}")
    elif len(r) == 2 and isinstance(r[1], float):
        mean, inflect = int(r[0]), r[1]
        if not -1 <= inflect <= 1:
            raise ValueError(f"inflect must be in [-1, 1], got {inflect}")
        first = int(mean * (1 - inflect))
        step = (2 * mean - 2 * first) / max(1, num_layers - 1)
        schedule = [int(first + step * layer) for layer in range(num_layers)]
    elif len(r) == num_layers:
        schedule = [int(value) for value in r]
    else:
        raise ValueError(
            f"r must be one number, (r, inflect) with a float inflect, or {num_layers} ints, got {list(r)}"
        )
    if min(schedule, default=0) < 0:
        raise ValueError(f"r must be >= 0 in every layer, got {schedule}")
    return schedule


class Tokens(NamedTuple):
    """What flows from block to block.

    x: [B, N', C]. size: [B, N'] fp32, patches in each token; None before the first merge, when all are 1.
    source: [B, N] int32, the token that each of the N first tokens is in now; None before, or when nobody asks.
    """

    x: Tensor
    size: Tensor | None = None
    source: Tensor | None = None


def merge_step(
    tokens: Tokens, branch: Tensor, key: Tensor, norm: nn.Module, r: int | float, protected: int, trace: bool
) -> tuple[Tokens, Tensor]:
    """What stands between attention and MLP: x + branch, merged by similarity of keys, and its norm.

    branch: [B, N, C], attention's output. key: [B, N, H, D]. norm: the MLP's. r: tokens to remove, or a fraction.
    protected: leading tokens that never merge. trace: follow `source`.
    Returns the merged tokens and norm(x'), the MLP's input; one kernel does both where it can.
    """
    x, size, source = tokens
    num_tokens = x.shape[1]
    if isinstance(r, float):
        r = int(r * (num_tokens - protected))
    if min(r, max_r(num_tokens, protected)) <= 0:
        x = x + branch
        return Tokens(x, size, source), norm(x)
    plan = match(key, r, protected)
    if size is None:
        size = torch.ones(x.shape[:2], device=x.device)
    if trace:
        source = plan.slot if source is None else compose(source, plan.slot)
    if takes_kernel(x) and isinstance(norm, nn.LayerNorm) and is_fusable(norm):
        x, size, normed = merge(x, size, plan, branch, norm=norm)
    else:
        x, size = merge(x, size, plan, branch)
        normed = norm(x)
    return Tokens(x, size, source), normed


def is_fusable(norm: nn.LayerNorm) -> bool:
    """Whether a kernel may compute this norm: of a library whose own kinds of LayerNorm are that, and without hooks."""
    library = type(norm).__module__.partition(".")[0]
    hooked = bool(norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks)
    return library in ("torch", "timm", "open_clip", "clip") and not hooked


class ToMeAttention(Attention):
    """timm's Attention, with its constructor and state_dict, whose tokens may stand for several patches.

    attn = ToMeAttention(dim, num_heads=12, qkv_bias=True)
    out, key = attn(x, size)                      # [B, N, C], [B, N, H, D]
    plan = match(key, r=8, protected=1)           # alt_fast_kernels
    x, size = merge(x, size, plan, residual=out)
    """

    def forward(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x: [B, N, C]. size: [B, N] fp32 patches per token, or None. Returns the output and the keys to match."""
        qkv = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, self.head_dim)
        dropout = self.attn_drop.p if self.training else 0.0
        if isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity):
            key = qkv[:, :, 1]
            out = proportional_attention_qkvpacked(qkv, size, self.scale, dropout)
        else:
            q, key, v = qkv.unbind(2)
            q, key = self.q_norm(q).to(v.dtype), self.k_norm(key).to(v.dtype)
            out = proportional_attention(q, key, v, size, self.scale, dropout)
        out = self.norm(out)
        gate = getattr(self, "gate", None)  # newer than the oldest timm that works
        if gate is not None:
            out = out * gate(x).sigmoid()
        return self.proj_drop(self.proj(out)), key

    @classmethod
    def from_timm(cls, attention: Attention) -> "ToMeAttention":
        """Take over timm's Attention; parameters are shared. Raises TypeError for any other class."""
        if type(attention) is not Attention:
            raise TypeError(f"attention must be timm.layers.Attention, got {type(attention).__name__}")
        taken = copy.copy(attention)
        taken.__class__ = cls
        return taken

    @classmethod
    def from_multihead(cls, attention: nn.MultiheadAttention) -> "ToMeAttention":
        """Take over nn.MultiheadAttention (open_clip, OpenAI's clip, torchvision); parameters are shared.

        The result takes [B, N, C] whatever `batch_first` was. Raises ValueError for cross-attention and added keys.
        """
        check_multihead(attention)
        taken = cls._empty(attention.embed_dim, attention.num_heads, attention.in_proj_bias is not None)
        taken.attn_drop.p = attention.dropout
        taken.qkv.weight, taken.qkv.bias = attention.in_proj_weight, attention.in_proj_bias
        taken.proj = attention.out_proj
        return taken.train(attention.training)

    @classmethod
    def from_huggingface(cls, attention: nn.Module) -> "ToMeAttention":
        """Take over the attention of HF's ViT, DINOv2, CLIP or SigLIP; q, k and v are copied into one projection.

        Raises ValueError when it has no q_proj, k_proj and v_proj of one width.
        """
        parts = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj")]
        proj = getattr(attention, "o_proj", None) or getattr(attention, "out_proj", None)
        layers = [part for part in (*parts, proj) if isinstance(part, nn.Linear)]
        if len(layers) < 4 or len({layer.weight.shape for layer in layers[:3]}) > 1:
            raise ValueError(
                f"{type(attention).__name__} has no q_proj, k_proj, v_proj of one width and output projection"
            )
        head_dim: int = attention.head_dim  # type: ignore[assignment]
        taken = cls._empty(layers[0].in_features, layers[0].out_features // head_dim, False)
        taken.attn_drop.p = getattr(attention, "attention_dropout", getattr(attention, "dropout", 0.0))
        with torch.no_grad():
            taken.qkv.weight = nn.Parameter(torch.cat(tuple(layer.weight for layer in layers[:3])))
            biases = tuple(layer.bias for layer in layers[:3] if layer.bias is not None)
            if len(biases) == 3:
                taken.qkv.bias = nn.Parameter(torch.cat(biases))
            elif biases:
                raise ValueError(f"{type(attention).__name__} has a bias on some of q, k, v only")
        taken.proj = layers[3]
        return taken.train(attention.training)

    @classmethod
    def _empty(cls, dim: int, num_heads: int, qkv_bias: bool) -> "ToMeAttention":
        """Without weights: every parameter is about to be replaced."""
        return cls(dim, num_heads=num_heads, qkv_bias=qkv_bias, device="meta")


def check_multihead(attention: nn.MultiheadAttention) -> None:
    """Raise ValueError unless it is plain self-attention with packed projections."""
    if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
        raise ValueError("attention must be plain self-attention: one width for q, k, v; no added keys")


def attend_multihead(attention: nn.MultiheadAttention, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """Self-attention by nn.MultiheadAttention's parameters: x [B, N, C] -> output [B, N, C], keys [B, N, H, D]."""
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    qkv = qkv.view(*x.shape[:2], 3, attention.num_heads, attention.head_dim)
    dropout = attention.dropout if attention.training else 0.0
    return attention.out_proj(proportional_attention_qkvpacked(qkv, size, dropout_p=dropout)), qkv[:, :, 1]
