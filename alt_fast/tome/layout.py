"""Where a host's block keeps its parts: all that merging has to know of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt_fast.errors import ArgumentError, check_at_least
from alt_fast_kernels import Rotary, proportional_attention, proportional_attention_qkvpacked

Attend = Callable[[nn.Module, Tensor, Tensor | None, Rotary | None], tuple[Tensor, Tensor]]
"""(attention, x [B, N, C], size [B, N] or None, rotary or None) -> output [B, N, C], keys to match [B, N, H, D]."""


def _check_names(layout: "SelfAttention | Layout", **fields: int | None) -> None:
    """Raise ArgumentError unless these fields are tuples of names, each of so many: letters of one are names, too."""
    for field, number in fields.items():
        given = getattr(layout, field)
        names = isinstance(given, tuple) and all(isinstance(name, str) for name in given)
        if not names or number not in (None, len(given)):
            many = "names" if number is None else f"{number} names"
            raise ArgumentError(f"{field} of a {type(layout).__name__} must be a tuple of {many}, got {given!r}")


@dataclass(frozen=True)
class SelfAttention:
    """Self-attention by the names of an attention module's parts; what a module lacks, it does without.

    qkv: one projection of queries, keys and values side by side, or the names of three. head_dim: the attribute with
    the width of a head. scale: that with the factor of the scores; None for 1 / sqrt(D). dropout: that with the
    dropout of weights, a number or nn.Dropout. qk_norm: norms of queries and keys, head by head, or with
    `norm_all_heads` all heads at once. inner_norm: a norm of what attention returns. gate: a layer on x whose sigmoid
    multiplies that, before the last projection. after: what follows, in order.

    BEiT's parameters q_bias and v_bias (and k_bias), where there are any, are the bias of one projection.
    """

    qkv: str | tuple[str, str, str] = "qkv"
    head_dim: str = "head_dim"
    scale: str | None = "scale"
    dropout: str = "attn_drop"
    qk_norm: tuple[str, str] = ("q_norm", "k_norm")
    norm_all_heads: bool = False
    inner_norm: str | None = None
    gate: str | None = None
    after: tuple[str, ...] = ("proj", "proj_drop")

    def __post_init__(self) -> None:
        if not isinstance(self.qkv, str):
            _check_names(self, qkv=3)
        _check_names(self, qk_norm=2, after=None)
        for field in ("inner_norm", "gate"):
            if getattr(self, field) == "":  # which would be the attention itself
                raise ArgumentError(f"{field} of a SelfAttention must be a name or None, got ''")

    def __call__(
        self, attention: nn.Module, x: Tensor, size: Tensor | None, rotary: Rotary | None
    ) -> tuple[Tensor, Tensor]:
        """Attend; rotary turns queries and keys, but not the keys that are matched."""
        scale = None if self.scale is None else part(attention, self.scale)
        dropout = part(attention, self.dropout)
        dropout = dropout.p if isinstance(dropout, nn.Dropout) else dropout or 0.0
        options: dict[str, Any] = {
            "scale": scale,
            "dropout_p": dropout if attention.training else 0.0,
            "rotary": rotary,
        }
        norms = [part(attention, name) for name in self.qk_norm]
        if isinstance(self.qkv, str) and all(norm is None or isinstance(norm, nn.Identity) for norm in norms):
            qkv = packed_projection(attention, self.qkv, x).unflatten(-1, (3, -1, part(attention, self.head_dim)))
            key, out = qkv[:, :, 1], proportional_attention_qkvpacked(qkv, size, **options)
        else:
            q, key, v = self.project(attention, x, norms)
            out = proportional_attention(q, key, v, size, **options)
        if self.inner_norm is not None:
            out = apply_parts(attention, (self.inner_norm,), out)
        gate = None if self.gate is None else part(attention, self.gate)
        if gate is not None:
            out = out * gate(x).sigmoid()
        return apply_parts(attention, self.after, out), key

    def project(self, attention: nn.Module, x: Tensor, norms: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, N, H, D], queries and keys normed; fewer heads of keys are repeated."""
        if isinstance(self.qkv, str):
            q, k, v = packed_projection(attention, self.qkv, x).chunk(3, -1)
        else:
            q, k, v = (part(attention, name)(x) for name in self.qkv)
        head_dim = part(attention, self.head_dim)
        if self.norm_all_heads:
            q, k = (y if norm is None else norm(y) for y, norm in zip((q, k), norms, strict=True))
        q, k, v = (y.unflatten(-1, (-1, head_dim)) for y in (q, k, v))
        if not self.norm_all_heads:
            q, k = (y if norm is None else norm(y) for y, norm in zip((q, k), norms, strict=True))
        group = q.shape[2] // k.shape[2]
        if group > 1:
            k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
        return q.to(v.dtype), k.to(v.dtype), v


TIMMS_ATTENTION = SelfAttention(inner_norm="norm", gate="gate")


def packed_projection(attention: nn.Module, name: str, x: Tensor) -> Tensor:
    """Queries, keys and values side by side [B, N, 3 * H * D], with BEiT's separate biases where there are any."""
    projection = part(attention, name)
    q_bias = part(attention, "q_bias")
    if q_bias is None:
        return projection(x)
    k_bias = part(attention, "k_bias")
    bias = torch.cat((q_bias, torch.zeros_like(q_bias) if k_bias is None else k_bias, part(attention, "v_bias")))
    if part(attention, "qkv_bias_separate"):  # timm's Eva, for layers that are more than their weight
        return projection(x) + bias
    return F.linear(x, projection.weight, bias)


@dataclass(frozen=True)
class Layout:
    """A block: x + after(attention(norm1(x))), merged, plus mlp(norm2(that)), by the names of its parts; timm's Block.

    A name may have dots. A part that is missing or None is left out; a parameter multiplies.

    attention: the attention module, "" for the block itself. attend: how it attends. norm1, norm2: before attention
    and MLP, None in blocks that norm behind them. after_attention: what follows attention. mlp: the parts of the other
    branch in order, or a function of the block and norm2's output; empty where attention is the only branch.
    rotary: from the block, the options it was called with and the number of unmerged tokens, cos and sin of all of
    these, or of all but the protected. per_layer_rotary: they differ from block to block. options: what the block may
    be called with besides its tokens: what `rotary` reads, and what changes nothing. returns_tuple: the host's block
    returns (hidden, None). sequence_first: its tokens are [N, B, C]. check_attention: raises ArgumentError
    for an attention module, in every eager forward pass, that does more than the layout says.
    """

    attend: Attend = TIMMS_ATTENTION
    attention: str = "attn"
    norm1: str | None = "norm1"
    after_attention: tuple[str, ...] = ("ls1", "drop_path1")
    norm2: str | None = "norm2"
    mlp: tuple[str, ...] | Callable[[nn.Module, Tensor], Tensor] = ("mlp", "ls2", "drop_path2")
    rotary: Callable[[nn.Module, Mapping[str, Any], int], Rotary | None] | None = None
    per_layer_rotary: bool = False
    options: tuple[str, ...] = ()
    returns_tuple: bool = False
    sequence_first: bool = False
    check_attention: Callable[[nn.Module], None] | None = None

    def __post_init__(self) -> None:
        _check_names(self, after_attention=None, options=None, **({} if callable(self.mlp) else {"mlp": None}))

    def check(self, block: nn.Module) -> None:
        """Raise ArgumentError when a block has no part of a name that it cannot do without."""
        attention = part(block, self.attention)
        needed = {name: block for name in (self.norm1, self.attention, self.norm2) if name}
        if isinstance(self.mlp, tuple):
            needed |= dict.fromkeys(self.mlp[:1], block)
        if isinstance(self.attend, SelfAttention) and attention is not None:
            projections = (self.attend.qkv,) if isinstance(self.attend.qkv, str) else self.attend.qkv
            needed |= dict.fromkeys((*projections, self.attend.head_dim, *self.attend.after[:1]), attention)
        for name, owner in needed.items():
            if part(owner, name) is None:
                raise ArgumentError(f"{type(owner).__name__} has no {name}, which the layout of its block names")


def attentions(block: nn.Module, layout: Layout) -> Iterator[tuple[str, nn.Module]]:
    """Yield what attends in a block, and where: by its place in the layout, its name or that of its class."""
    placed = part(block, layout.attention)
    for path, module in block.named_modules():
        named = path.rpartition(".")[2] in ("attn", "attention", "self_attn") or "Attention" in type(module).__name__
        if named or module is placed:
            yield path, module


def part(module: nn.Module, name: str) -> Any:
    """Return the part of a module at a dotted name, None where there is none."""
    found: Any = module
    for step in name.split(".") if name else ():
        found = getattr(found, step, None)
    return found


def apply_parts(module: nn.Module, names: tuple[str, ...], x: Tensor) -> Tensor:
    """Apply parts one after another: modules are called, parameters multiply, what is missing is skipped."""
    for name in names:
        found = part(module, name)
        if isinstance(found, nn.Module):
            x = found(x)
        elif found is not None:
            x = found * x
    return x


@dataclass(frozen=True)
class Tower:
    """What a host's adapter finds in a model.

    blocks: in order. protected: leading tokens that never merge. layouts: by the class of a block. class_token: whether
    the first of the protected, if there is one, is a class token. Raises ArgumentError without blocks, and if protected
    is below 0.
    """

    blocks: list[nn.Module]
    protected: int
    layouts: Mapping[type[nn.Module], Layout]
    class_token: bool = True

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ArgumentError("blocks of a tower must be at least one, got none")
        check_at_least(self, protected=0)


def full_name(kind: type) -> str:
    """MODULE.CLASS: packages that wrap classes call theirs by the same names."""
    return f"{kind.__module__}.{kind.__qualname__}"
