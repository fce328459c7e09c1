"""Entity alignment: every token chooses one text entity (ALT, eq. 4 and 5)."""

import torch
from torch import Tensor

from alt_fast_kernels.align.reference import align_reference

__all__ = ["align"]


def align(tokens: Tensor, entities: Tensor, tau: float = 1.0, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Hard choice of the most similar entity, with the gradient of the soft choice.

    tokens: [..., C]. entities: [K, C], K >= 1. tau: softmax temperature, > 0.
    seed: int64 scalar tensor that draws the Gumbel noise of eq. 4, or None for no noise. The noise is counter-based:
        the same seed gives the same choice on every device.
    Returns index [...] int64, the entity chosen for each token, and aligned [..., C] = entities[index] in tokens'
    dtype; its gradient is that of softmax(cosine / tau + noise) @ entities. Computed in at least fp32.
    Raises ValueError or TypeError naming the argument at fault.
    """
    if entities.ndim != 2 or entities.shape[0] == 0:
        raise ValueError(f"entities must be [K, C] with K >= 1, got shape {tuple(entities.shape)}")
    if tokens.shape[-1] != entities.shape[1]:
        raise ValueError(
            f"tokens must have entities' width {entities.shape[1]} in the last dimension, got {tuple(tokens.shape)}"
        )
    if not tau > 0:
        raise ValueError(f"tau must be > 0, got {tau}")
    if seed is not None and (seed.numel() != 1 or seed.dtype != torch.int64):
        raise TypeError(f"seed must be one int64 number, got {seed.dtype} of shape {tuple(seed.shape)}")
    return align_reference(tokens, entities, tau, seed)
