"""`torch.ops.alt_fast.attention` and `attention_packed` with their backwards: the kernels as PyTorch sees them."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alt_fast_kernels.attention.rotary import Rotary
from alt_fast_kernels.configs import TURNS_16, arch_of
from alt_fast_kernels.library import differentiable, fold_vmap, kernels_of, once, operator, register_vmap

if TYPE_CHECKING:
    from alt_fast_kernels.attention.triton import Inputs

_Pair = tuple[Tensor, Tensor]


def _empty(
    q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float,
    cos: Tensor | None = None, sin: Tensor | None = None, interleaved: bool = False,
) -> _Pair:  # fmt: skip
    batch, num_q, heads, dim = q.shape
    return q.new_empty(batch, num_q, heads * dim), q.new_empty(batch, heads, num_q, dtype=torch.float32)


@operator(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? size, float scale, "
    "Tensor? cos=None, Tensor? sin=None, bool interleaved=False) -> (Tensor, Tensor)",
    _empty,
)
def attention_op(
    q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float,
    cos: Tensor | None = None, sin: Tensor | None = None, interleaved: bool = False,
) -> _Pair:  # fmt: skip
    """Attend: q [B, N, H, D], k, v [B, M, H, D], size [B, M] -> out [B, N, H * D], and lse2 [B, H, N] for backward.

    lse2: log-sum-exp of each query's scores (scaled, and with log size) in base 2, fp32. cos, sin: as in `Rotary`.
    """
    out, lse2 = _empty(q, k, v, size, scale)
    kernels_of("attention").attention_fwd_launch(_prepare(q, k, v, size, scale, cos, sin, interleaved), out, lse2).run()
    return out, lse2


def _empty_grads(
    grad_out: Tensor, out: Tensor, lse2: Tensor, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float,
    cos: Tensor | None = None, sin: Tensor | None = None, interleaved: bool = False, needs_kv: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    of_keys = (_contiguous_like(k), _contiguous_like(v)) if needs_kv else (k.new_empty(0), v.new_empty(0))
    return _contiguous_like(q), *of_keys


@operator(
    "attention_backward(Tensor grad_out, Tensor out, Tensor lse2, Tensor q, Tensor k, Tensor v, Tensor? size, "
    "float scale, Tensor? cos=None, Tensor? sin=None, bool interleaved=False, bool needs_kv=True) "
    "-> (Tensor, Tensor, Tensor)",
    _empty_grads,
)
def attention_backward_op(
    grad_out: Tensor, out: Tensor, lse2: Tensor, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float,
    cos: Tensor | None = None, sin: Tensor | None = None, interleaved: bool = False, needs_kv: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k and v, each contiguous; those of k and v are empty unless needed."""
    grads = _empty_grads(grad_out, out, lse2, q, k, v, size, scale, cos, sin, interleaved, needs_kv)
    inputs = _prepare(q, k, v, size, scale, cos, sin, interleaved)
    _run_backward(grad_out, out, lse2, inputs, grads if needs_kv else (grads[0], inputs.k, inputs.v), needs_kv)
    return grads


def _empty_packed(
    qkv: Tensor, size: Tensor | None, scale: float,
    cos: Tensor | None = None, sin: Tensor | None = None, interleaved: bool = False,
) -> _Pair:  # fmt: skip
    q, k, v = qkv.unbind(2)
    return _empty(q, k, v, size, scale)


@operator(
    "attention_packed(Tensor qkv, Tensor? size, float scale, "
    "Tensor? cos=None, Tensor? sin=None, bool interleaved=False) -> (Tensor, Tensor)",
    _empty_packed,
)
def attention_packed_op(
    qkv: Tensor, size: Tensor | None, scale: float,
    cos: Tensor | None = None, sin: Tensor | None = None, interleaved: bool = False,
) -> _Pair:  # fmt: skip
    """Do as `attention` on a packed projection [B, N, 3, H, D], whose gradient then needs no copy either."""
    q, k, v = _unit_stride(qkv).unbind(2)
    out, lse2 = _empty(q, k, v, size, scale)
    inputs = _inputs(q, k, v, size, scale, cos, sin, interleaved)
    kernels_of("attention").attention_fwd_launch(inputs, out, lse2).run()
    return out, lse2


def _empty_packed_grad(
    grad_out: Tensor, out: Tensor, lse2: Tensor, qkv: Tensor, size: Tensor | None, scale: float,
    cos: Tensor | None = None, sin: Tensor | None = None, interleaved: bool = False,
) -> Tensor:  # fmt: skip
    return _contiguous_like(qkv)


@operator(
    "attention_packed_backward(Tensor grad_out, Tensor out, Tensor lse2, Tensor qkv, Tensor? size, float scale, "
    "Tensor? cos=None, Tensor? sin=None, bool interleaved=False) -> Tensor",
    _empty_packed_grad,
)
def attention_packed_backward_op(
    grad_out: Tensor, out: Tensor, lse2: Tensor, qkv: Tensor, size: Tensor | None, scale: float,
    cos: Tensor | None = None, sin: Tensor | None = None, interleaved: bool = False,
) -> Tensor:  # fmt: skip
    """Return the gradient of qkv, contiguous."""
    grad = _contiguous_like(qkv)
    q, k, v = qkv.unbind(2)
    _run_backward(grad_out, out, lse2, _prepare(q, k, v, size, scale, cos, sin, interleaved), grad.unbind(2))
    return grad


def _run_backward(
    grad_out: Tensor, out: Tensor, lse2: Tensor, inputs: "Inputs", grads: tuple[Tensor, ...], needs_kv: bool = True
) -> None:
    """Launch what the gradients need: that of q, which leaves delta, then those of k and v."""
    kernels = kernels_of("attention")
    saved = kernels.Saved(out, lse2, grad_out.contiguous())
    of_q, of_kv = kernels.attention_bwd_launches(inputs, saved, torch.empty_like(lse2), kernels.Gradients(*grads))
    of_q.run()
    if needs_kv:
        of_kv.run()


def _prepare(
    q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float,
    cos: Tensor | None, sin: Tensor | None, interleaved: bool,
) -> "Inputs":  # fmt: skip
    return _inputs(_unit_stride(q), _unit_stride(k), _unit_stride(v), size, scale, cos, sin, interleaved)


def _inputs(
    q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float,
    cos: Tensor | None, sin: Tensor | None, interleaved: bool,
) -> "Inputs":  # fmt: skip
    """Return what kernels read, of q, k and v with unit stride over their channels."""
    size = None if size is None else size.float().contiguous()
    rotary = None if cos is None or sin is None else Rotary(*_tables(cos, sin, q), interleaved)
    inputs: Inputs = kernels_of("attention").Inputs(q, k, v, size, scale, rotary)
    return inputs


def _tables(cos: Tensor, sin: Tensor, q: Tensor) -> _Pair:
    """Both in fp32, or in q's 16 bits where they have them and the kernels take them, and of equal strides."""
    short = cos.dtype == sin.dtype == q.dtype and q.itemsize == 2 and arch_of(q.device) in TURNS_16
    dtype = q.dtype if short else torch.float32
    cos, sin = _unit_stride(cos.to(dtype)), _unit_stride(sin.to(dtype))
    return (cos, sin) if cos.stride() == sin.stride() else (cos.contiguous(), sin.contiguous())


def _unit_stride(x: Tensor) -> Tensor:
    """Copy a view that strides over channels: the kernels read the channels of a head as they lie."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: _Pair) -> None:
    *tensors, scale, cos, sin, interleaved = inputs
    ctx.save_for_backward(*output, *tensors, cos, sin)
    ctx.scale, ctx.interleaved = scale, interleaved
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # zeros for lse2, which nobody reads


def _saved(ctx: Any) -> tuple[Any, ...]:
    """What the backward operators take behind grad_out."""
    *tensors, cos, sin = ctx.saved_tensors
    return *tensors, ctx.scale, cos, sin, ctx.interleaved


def _backward(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return 8 * (None,)
    needs = ctx.needs_input_grad[:3]
    grads = _attention_backward(grad_out, *_saved(ctx), any(needs[1:]))
    return (*(grad if needed else None for grad, needed in zip(grads, needs, strict=True)), *5 * (None,))


def _backward_packed(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return 6 * (None,)
    return _packed_backward(grad_out, *_saved(ctx)), *5 * (None,)


register_vmap(attention_op, fold_vmap(attention_op, 4, (5, 6)))
register_vmap(attention_backward_op, fold_vmap(attention_backward_op, 7, (8, 9)))
register_vmap(attention_packed_op, fold_vmap(attention_packed_op, 2, (3, 4)))
register_vmap(attention_packed_backward_op, fold_vmap(attention_packed_backward_op, 5, (6, 7)))

_attention_backward = once(attention_backward_op)
_packed_backward = once(attention_packed_backward_op)
attention = differentiable(attention_op, _save, _backward)
attention_packed = differentiable(attention_packed_op, _save, _backward_packed)
