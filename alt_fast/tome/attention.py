"""Attention whose tokens may stand for several patches: timm's, and by the parameters of others'."""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

from alt_fast.errors import ArgumentError
from alt_fast.tome.layout import TIMMS_ATTENTION, full_name
from alt_fast_kernels import Rotary, proportional_attention_qkvpacked


class ToMeAttention(Attention):
    """timm's Attention, with its constructor and state_dict, whose tokens may stand for several patches.

    attn = ToMeAttention(dim, num_heads=12, qkv_bias=True)
    out, key = attn(x, size)                      # [B, N, C], [B, N, H, D]
    plan = match(key, r=8, protected=1)           # alt_fast_kernels
    x, size = merge(x, size, plan, residual=out)
    """

    def forward(self, x: Tensor, size: Tensor | None = None, rotary: Rotary | None = None) -> tuple[Tensor, Tensor]:
        """x: [B, N, C]. size: [B, N] fp32 patches per token, or None. rotary: turns queries and keys, or None.

        Returns the output and the keys to match, as they are before they turn.
        """
        return TIMMS_ATTENTION(self, x, size, rotary)

    @classmethod
    def from_timm(cls, attention: Attention) -> "ToMeAttention":
        """Take over timm's Attention; layers with parameters are shared, its hooks are not.

        Raises TypeError for any other class.
        """
        if type(attention) is not Attention:
            raise TypeError(f"attention must be timm.layers.Attention, got {type(attention).__name__}")
        taken = cls.__new__(cls)
        nn.Module.__init__(taken)
        for name, value in vars(attention).items():
            if "hook" not in name:
                taken.__dict__[name] = copy.copy(value)  # parts may be replaced in one and not in the other
        for name, layer in attention.named_children():
            if next(layer.parameters(), None) is None:  # dropouts have a mode
                setattr(taken, name, copy.deepcopy(layer))
        return taken

    @classmethod
    def from_multihead(cls, attention: nn.MultiheadAttention) -> "ToMeAttention":
        """Take over nn.MultiheadAttention (open_clip, OpenAI's clip, torchvision); parameters are shared.

        The result takes [B, N, C] whatever `batch_first` was. Raises ArgumentError for cross-attention, added keys
        and a subclass with a forward of its own.
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

        Hooks on it stay with it. Raises ArgumentError when it has no q_proj, k_proj and v_proj of one width or norms
        them, and when it or a projection does more than its weights say.
        """
        kind = type(attention).__name__
        parts = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj")]
        proj = getattr(attention, "o_proj", None) or getattr(attention, "out_proj", None)
        layers = [part for part in (*parts, proj) if isinstance(part, nn.Linear)]
        if len(layers) < 4 or len({layer.weight.shape for layer in layers[:3]}) > 1:
            raise ArgumentError(f"{kind} has no q_proj, k_proj, v_proj of one width and output projection")
        of_host = getattr(type(attention).forward, "__module__", "").startswith("transformers.")
        if not of_host or "forward" in vars(attention):
            raise ArgumentError(f"attention must be transformers' own, got {kind} with a forward that is not")
        for layer in layers[:3]:
            hooked = "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks
            if hooked or type(layer).forward is not nn.Linear.forward or not layer.weight.is_floating_point():
                what = "one with hooks" if hooked else type(layer).__name__
                raise ArgumentError(f"q, k and v of {kind} must be plain nn.Linear, got {what}")
        for name in ("q_norm", "k_norm"):
            if not isinstance(getattr(attention, name, nn.Identity()), nn.Identity):
                raise ArgumentError(f"{kind} has {name}, which ToMeAttention does not take over")
        head_dim: int = attention.head_dim  # type: ignore[assignment]
        taken = cls._empty(layers[0].in_features, layers[0].out_features // head_dim, False)
        taken.scale = getattr(attention, "scaling", getattr(attention, "scale", taken.scale))
        taken.attn_drop.p = getattr(attention, "attention_dropout", getattr(attention, "dropout", 0.0))
        with torch.no_grad():
            taken.qkv.weight = _joined([layer.weight for layer in layers[:3]])
            biases = [layer.bias for layer in layers[:3] if layer.bias is not None]
            if len(biases) == 3:
                taken.qkv.bias = _joined(biases)
            elif biases:
                raise ArgumentError(f"{kind} has a bias on some of q, k, v only")
        taken.proj = layers[3]
        return taken.train(attention.training)

    @classmethod
    def _empty(cls, dim: int, num_heads: int, qkv_bias: bool) -> "ToMeAttention":
        """Without weights: every parameter is about to be replaced."""
        return cls(dim, num_heads=num_heads, qkv_bias=qkv_bias, device="meta")


def _joined(parts: Sequence[Tensor]) -> nn.Parameter:
    """One parameter of several, frozen if they all are."""
    return nn.Parameter(torch.cat(tuple(parts)), requires_grad=any(part.requires_grad for part in parts))


def check_multihead(attention: nn.Module) -> None:
    """Raise ArgumentError unless it is plain self-attention by nn.MultiheadAttention with packed projections."""
    kind = type(attention)
    ours = kind.__module__.startswith("alt_fast.")  # with rotary positions, which the layout of its block knows
    if not (isinstance(attention, nn.MultiheadAttention) and (ours or kind.forward is nn.MultiheadAttention.forward)):
        raise ArgumentError(f"attention must be an nn.MultiheadAttention itself, got {full_name(type(attention))}")
    if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
        raise ArgumentError("attention must be plain self-attention: one width for q, k, v; no added keys")


def attend_multihead(
    attention: nn.Module, x: Tensor, size: Tensor | None, rotary: Rotary | None = None
) -> tuple[Tensor, Tensor]:
    """Self-attention by nn.MultiheadAttention's parameters: x [B, N, C] -> output [B, N, C], keys [B, N, H, D]."""
    if not isinstance(attention, nn.MultiheadAttention):  # something was put in its place
        raise ArgumentError(f"attention must be an nn.MultiheadAttention itself, got {full_name(type(attention))}")
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    qkv = qkv.view(*x.shape[:2], 3, attention.num_heads, attention.head_dim)
    dropout = attention.dropout if attention.training else 0.0
    out = proportional_attention_qkvpacked(qkv, size, dropout_p=dropout, rotary=rotary)
    return attention.out_proj(out), qkv[:, :, 1]
