"""`torch.ops.alt_fast.align` and its backward: the kernels as PyTorch sees them."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alt_fast_kernels.dispatch import without_autocast
from alt_fast_kernels.library import differentiable, fold_vmap, once, operator, register_vmap

if TYPE_CHECKING:
    from alt_fast_kernels.align.triton import Inputs

_TINY = 1e-12  # the least norm; a token of zeros has cosine 0 with everything


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
    of exponentials of each token's logits, in base 2, and softmax's weight of the entity chosen.
    """
    from alt_fast_kernels.align.triton import align_fwd_launch, num_splits

    inputs = _prepare(tokens, entities, tau, seed, period)
    bound = math.log2(math.e) / tau  # of the cosine 1
    best, lse = inputs.factor.new_empty(2, num_splits(inputs, bound), len(tokens))
    index = torch.empty_like(best, dtype=torch.int32)
    align_fwd_launch(inputs, bound, best, index, lse).run()
    best, part = best.max(0, keepdim=True)  # parts in order: the lower index wins a tie
    chosen = index.gather(0, part)[0].long()
    top = lse.max(0).values
    lse = top + (lse - top).exp2().sum(0).log2()
    stats = torch.stack([lse, (best[0] - lse).exp2()], 1)
    return entities.index_select(0, chosen), chosen, stats


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
    from alt_fast_kernels.align.triton import CHUNK, Saved, align_bwd_launch, sum_tiles

    inputs = _prepare(tokens, entities, tau, seed, period)
    num_tokens, width = tokens.shape
    grad_aligned = grad_aligned.contiguous()
    lse, sure = stats.unbind(1)
    of_chosen = (grad_aligned * entities.index_select(0, index)).sum(-1, dtype=torch.float32)
    of_mean = (grad_aligned * entities.mean(0, dtype=torch.float32)).sum(-1, dtype=torch.float32)
    pivot = torch.lerp(of_mean, of_chosen, sure)
    saved = Saved(lse.contiguous(), grad_aligned, pivot)
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
    # The weights add up to 1 but for the rounding of lse, which is divided out.
    delta, total = totals[0] / totals[1], totals[1]
    direction = (sums[0] - delta[:, None] * sums[1]) / total[:, None]
    # Through the normalisation: the part along the token does not change its cosine.
    inverse = 1.0 / _norm(tokens)[:, None]
    unit = tokens * inverse
    along = (direction * unit).sum(-1, keepdim=True)
    return ((direction - unit * along) * (inverse / tau)).to(tokens.dtype)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).clamp_min(_TINY)


def _prepare(tokens: Tensor, entities: Tensor, tau: float, seed: Tensor | None, period: int) -> "Inputs":
    from alt_fast_kernels.align.triton import Inputs

    factor = (math.log2(math.e) / tau) / _norm(tokens)
    return Inputs(tokens.contiguous(), entities.contiguous(), factor, 1.0 / _norm(entities), seed, period)


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
