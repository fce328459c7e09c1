"""`torch.ops.alt_fast.align` and its backward: the kernels as PyTorch sees them."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alt_fast_kernels.dispatch import without_autocast
from alt_fast_kernels.library import differentiable, fold_vmap, once, operator, register_vmap

if TYPE_CHECKING:
    from alt_fast_kernels.align.triton import Inputs


def _empty(
    tokens: Tensor, entities: Tensor, tau: float, seed: Tensor | None, period: int
) -> tuple[Tensor, Tensor, Tensor]:
    index = tokens.new_empty(len(tokens), dtype=torch.int64)
    return tokens.new_empty(tokens.shape), index, tokens.new_empty(len(tokens), 2, dtype=torch.float32)


@operator(
    "align(Tensor tokens, Tensor entities, float tau, Tensor? seed, SymInt period) -> (Tensor, Tensor, Tensor)", _empty
)
def align_op(
    tokens: Tensor, entities: Tensor, tau: float, seed: Tensor | None, period: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Align: tokens [M, C], entities [K, C] -> aligned [M, C], index [M] int64, and stats [M, 2] fp32 for backward.

    Entities have the tokens' dtype. period: a token's row in the noise is its index modulo that. stats: log of the sum
    of exponentials of each token's logits, in base 2 (with noise but for a constant), and softmax's weight of the
    entity chosen.
    """
    from alt_fast_kernels.align.rows import pick_launch
    from alt_fast_kernels.align.triton import align_fwd_launch

    inputs = _prepare(tokens, entities, tau, seed, period)
    bound = math.log2(math.e) / tau  # of the cosine 1
    launch, parts = align_fwd_launch(inputs, bound)
    launch.run()
    aligned, chosen, stats = _empty(tokens, entities, tau, seed, period)
    pick_launch(inputs.entities, parts, aligned, chosen, stats).run()
    return aligned, chosen, stats


def _empty_grad(
    grad_aligned: Tensor,
    index: Tensor,
    stats: Tensor,
    tokens: Tensor,
    entities: Tensor,
    tau: float,
    seed: Tensor | None,
    period: int,
) -> Tensor:
    return tokens.new_empty(tokens.shape)


@operator(
    "align_backward(Tensor grad_aligned, Tensor index, Tensor stats, Tensor tokens, Tensor entities, float tau, "
    "Tensor? seed, SymInt period) -> Tensor",
    _empty_grad,
)
def align_backward_op(
    grad_aligned: Tensor,
    index: Tensor,
    stats: Tensor,
    tokens: Tensor,
    entities: Tensor,
    tau: float,
    seed: Tensor | None,
    period: int,
) -> Tensor:
    """Return the gradient of tokens [M, C], that of the soft assignment; [2, M, CHUNK] weights in memory at a time.

    With weights w, unit entities e and g the gradient of each weight, that of the unit token, times tau, is
    sum(w (g - delta) e) with delta = sum(w g). One pass over the corpus sums w (g - pivot) e and w e, and delta - pivot
    on the side. Any pivot is right; a guess of delta, from the entity chosen and the mean of all, loses no precision.
    """
    from alt_fast_kernels.align.rows import finish_launch, pivot_launch
    from alt_fast_kernels.align.triton import CHUNK, Saved, align_bwd_launch, sum_tiles

    inputs = _prepare(tokens, entities, tau, seed, period)
    num_tokens, width = tokens.shape
    pivot = inputs.factor.new_empty(num_tokens)
    lse = stats[:, 0].contiguous()
    if tokens.dtype == torch.float16:
        lse = lse - _fp16_headroom(grad_aligned, inputs.inverse)
    saved = Saved(lse, grad_aligned.contiguous(), pivot)
    mean = entities.mean(0, dtype=torch.float32)
    pivot_launch(saved.grad_out, inputs.entities, mean, index.contiguous(), stats.contiguous(), pivot).run()
    sums = inputs.factor.new_zeros(2, num_tokens, width)
    totals = pivot.new_zeros(2, num_tokens)
    with without_autocast(tokens):  # backward may run inside the caller's
        for first in range(0, len(entities), CHUNK):
            part = slice(first, first + CHUNK)
            unit = (inputs.entities[part] * inputs.inverse[part, None]).to(tokens.dtype)
            columns = -(-len(unit) // 16) * 16  # whole vectors; those beyond the last entity are zeros
            weights = tokens.new_empty(2, num_tokens, columns)
            parts = pivot.new_empty(2, sum_tiles(inputs, columns), num_tokens)
            align_bwd_launch(inputs, saved, first, weights, parts).run()
            sums += (weights.flatten(0, 1)[:, : len(unit)] @ unit).view(sums.shape)
            totals += parts.sum(1)
    grad = tokens.new_empty(tokens.shape)
    finish_launch(inputs.tokens, inputs.factor, sums, totals, tau, grad).run()
    return grad


def _fp16_headroom(grad_aligned: Tensor, inverse: Tensor) -> Tensor:
    """Return the binary exponent [M] by which a token's weights may be larger, where fp16 holds all that is of them.

    Weights are of the order of 1 / K, and their products with a small gradient would vanish. That all are larger, as
    by a smaller sum of exponentials, is divided out at the end, as that sum's rounding is.
    """
    most = 2 * grad_aligned.norm(dim=-1, dtype=torch.float32) / inverse.min()  # of |g - pivot|
    return (15 - most.clamp(min=1).log2()).floor()


def _prepare(tokens: Tensor, entities: Tensor, tau: float, seed: Tensor | None, period: int) -> "Inputs":
    from alt_fast_kernels.align.rows import norm_launch
    from alt_fast_kernels.align.triton import PADDING, Inputs

    tokens, entities = tokens.contiguous(), entities.contiguous()
    factor = tokens.new_empty(len(tokens), dtype=torch.float32)
    columns = entities.new_empty(len(entities) + PADDING, dtype=torch.float32 if seed is None else torch.int64)
    norm_launch(tokens, math.log2(math.e) / tau, factor).run()
    norm_launch(entities, 1.0, columns).run()
    return Inputs(tokens, entities, factor, columns, seed, period)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    tokens, entities, ctx.tau, seed, ctx.period = inputs
    _, index, stats = output
    ctx.save_for_backward(index, stats, tokens, entities, seed)
    ctx.mark_non_differentiable(index, stats)
    ctx.set_materialize_grads(False)  # zeros for index and stats, which nobody reads


def _backward(ctx: Any, grad_aligned: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_aligned is None:
        return 5 * (None,)
    index, stats, tokens, entities, seed = ctx.saved_tensors
    grad = _align_backward(grad_aligned, index, stats, tokens, entities, ctx.tau, seed, ctx.period)
    return grad, None, None, None, None


register_vmap(align_op, fold_vmap(align_op, 1))
register_vmap(align_backward_op, fold_vmap(align_backward_op, 4))

_align_backward = once(align_backward_op)
align = differentiable(align_op, _save, _backward)
