"""`torch.ops.alt_fast.align` and its backward: the kernels as PyTorch sees them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alt_fast_kernels.dispatch import fold_vmap


@torch.library.custom_op("alt_fast::align", mutates_args=())
def align_op(
    tokens: Tensor, entities: Tensor, tau: float, seed: Tensor | None, soft: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """tokens [M, C], entities [K, C] -> index [M] int64, aligned [M, C]; with soft also what backward needs.

    That is softmax(logits) @ entities [M, C] in fp32 and the logits' log-sum-exp [M]; empty without soft.
    """
    from alt_fast_kernels.align.triton import SPLITS, align_argmax_launch, align_soft_fwd_launch

    inputs, length = _prepare(tokens, entities, tau, seed)
    best = inputs[2].new_empty(SPLITS, len(tokens))
    index = torch.empty_like(best, dtype=torch.int32)
    align_argmax_launch(inputs, best, index).run()
    chosen = index.gather(0, best.argmax(0, keepdim=True))[0].long()  # parts in order: the lower index wins a tie
    aligned = entities.index_select(0, chosen).to(tokens.dtype)
    _, _, mixed, lse = _empty_outputs(tokens, soft)
    if soft:
        align_soft_fwd_launch(inputs, length, mixed, lse).run()
    return chosen, aligned, mixed, lse


@align_op.register_fake
def _(
    tokens: Tensor, entities: Tensor, tau: float, seed: Tensor | None, soft: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_outputs(tokens, soft)


@torch.library.custom_op("alt_fast::align_backward", mutates_args=())
def align_backward_op(
    grad_aligned: Tensor, mixed: Tensor, lse: Tensor, tokens: Tensor, entities: Tensor, tau: float, seed: Tensor | None
) -> Tensor:
    """Gradient of tokens [M, C], that of the soft assignment."""
    from alt_fast_kernels.align.triton import align_soft_bwd_launch

    inputs, length = _prepare(tokens, entities, tau, seed)
    grad = torch.empty_like(inputs[0])
    align_soft_bwd_launch(inputs, length, tau, (mixed, lse, grad_aligned.contiguous()), grad).run()
    return grad


@align_backward_op.register_fake
def _(
    grad_aligned: Tensor, mixed: Tensor, lse: Tensor, tokens: Tensor, entities: Tensor, tau: float, seed: Tensor | None
) -> Tensor:
    return tokens.new_empty(tokens.shape)


def _prepare(
    tokens: Tensor, entities: Tensor, tau: float, seed: Tensor | None
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor | None], Tensor]:
    """What the kernels read: contiguous tokens, unit entities in their dtype, 1 / (norm * tau); and entity norms."""
    tokens = tokens.contiguous()
    length = entities.float().norm(dim=-1)
    unit = F.normalize(entities.float(), dim=-1, eps=1e-12).to(tokens.dtype)
    inverse = 1.0 / (tokens.float().norm(dim=-1).clamp_min(1e-12) * tau)
    return (tokens, unit, inverse, seed), length


def _empty_outputs(tokens: Tensor, soft: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, width = tokens.shape
    index = tokens.new_empty(rows, dtype=torch.int64)
    aligned = tokens.new_empty(rows, width)
    mixed = tokens.new_empty((rows, width) if soft else (0,), dtype=torch.float32)
    return index, aligned, mixed, mixed.new_empty(rows if soft else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tokens, entities, ctx.tau, seed, ctx.soft = inputs
    index, _, mixed, lse = output
    ctx.save_for_backward(mixed, lse, tokens, entities, seed)
    ctx.mark_non_differentiable(index, mixed, lse)


def _backward(ctx: Any, _: Any, grad_aligned: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    mixed, lse, tokens, entities, seed = ctx.saved_tensors
    if not ctx.soft:
        raise RuntimeError("align ran without its soft assignment; call it with soft=True to train")
    return align_backward_op(grad_aligned, mixed, lse, tokens, entities, ctx.tau, seed), None, None, None, None


align_op.register_autograd(_backward, setup_context=_save)
