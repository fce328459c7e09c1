"""`torch.ops.alt_fast.align` and its backward: the kernels as PyTorch sees them."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from alt_fast_kernels.align.triton import Inputs


@torch.library.custom_op("alt_fast::align", mutates_args=())
def align_op(tokens: Tensor, entities: Tensor, tau: float, seed: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Align: tokens [M, C], entities [K, C] -> aligned [M, C], index [M] int64, and stats [2, M] fp32 for backward.

    stats: the largest logit of each token, and 1 / sum of exp(logit - largest).
    """
    from alt_fast_kernels.align.triton import SPLITS, align_fwd_launch

    inputs = _prepare(tokens, entities, tau, seed)
    best, total = inputs.factor.new_empty(2, SPLITS, len(tokens))
    index = torch.empty_like(best, dtype=torch.int32)
    align_fwd_launch(inputs, best, index, total).run()
    top, part = best.max(0, keepdim=True)  # parts in order: the lower index wins a tie
    chosen = index.gather(0, part)[0].long()
    stats = torch.cat([top, 1.0 / (total * (best - top).exp()).sum(0, keepdim=True)])
    return entities.index_select(0, chosen).to(tokens.dtype), chosen, stats


@align_op.register_fake
def _(tokens: Tensor, entities: Tensor, tau: float, seed: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    index = tokens.new_empty(len(tokens), dtype=torch.int64)
    return tokens.new_empty(tokens.shape), index, tokens.new_empty(2, len(tokens), dtype=torch.float32)


@torch.library.custom_op("alt_fast::align_backward", mutates_args=())
def align_backward_op(
    grad_aligned: Tensor, stats: Tensor, tokens: Tensor, entities: Tensor, tau: float, seed: Tensor | None
) -> Tensor:
    """Return the gradient of tokens [M, C], that of the soft assignment; [M, CHUNK] logits in memory at a time."""
    from alt_fast_kernels.align.triton import CHUNK, SPLITS, Saved, align_bwd_logits_launch, align_bwd_sum_launch

    inputs = _prepare(tokens, entities, tau, seed)
    saved = Saved(stats, grad_aligned.contiguous())
    parts = inputs.factor.new_empty(SPLITS, len(tokens))
    align_bwd_sum_launch(inputs, saved, parts).run()
    delta = parts.sum(0)
    direction = torch.zeros(tokens.shape, device=tokens.device)  # gradient of the unit token, times tau
    for first in range(0, len(entities), CHUNK):
        chunk = inputs.entities[first : first + CHUNK]
        grad_logits = tokens.new_empty(len(tokens), len(chunk))
        align_bwd_logits_launch(inputs, saved, delta, first, grad_logits).run()
        direction += grad_logits @ chunk
    # Through the normalisation: the part along the token does not change its cosine.
    unit = F.normalize(tokens.float(), dim=-1, eps=1e-12)
    along = (direction * unit).sum(-1, keepdim=True)
    return ((direction - unit * along) * inputs.factor[:, None]).to(tokens.dtype)


@align_backward_op.register_fake
def _(grad_aligned: Tensor, stats: Tensor, tokens: Tensor, entities: Tensor, tau: float, seed: Tensor | None) -> Tensor:
    return tokens.new_empty(tokens.shape)


def _prepare(tokens: Tensor, entities: Tensor, tau: float, seed: Tensor | None) -> "Inputs":
    from alt_fast_kernels.align.triton import Inputs

    wide = entities.float()
    unit = F.normalize(wide, dim=-1, eps=1e-12).to(tokens.dtype).contiguous()
    factor = 1.0 / (tokens.float().norm(dim=-1).clamp_min(1e-12) * tau)
    return Inputs(tokens.contiguous(), unit, factor, wide.norm(dim=-1), seed)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    tokens, entities, ctx.tau, seed = inputs
    _, index, stats = output
    ctx.save_for_backward(stats, tokens, entities, seed)
    ctx.mark_non_differentiable(index, stats)


def _backward(ctx: Any, grad_aligned: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    stats, tokens, entities, seed = ctx.saved_tensors
    return align_backward_op(grad_aligned, stats, tokens, entities, ctx.tau, seed), None, None, None


align_op.register_autograd(_backward, setup_context=_save)
