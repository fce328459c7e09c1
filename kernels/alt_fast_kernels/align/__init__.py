"""Entity alignment: every token chooses one text entity (ALT, eq. 4 and 5)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from alt_fast_kernels.align.op import align as align_by_kernel
from alt_fast_kernels.align.reference import align_reference
from alt_fast_kernels.checks import check_device
from alt_fast_kernels.dispatch import takes_kernel

__all__ = ["align"]

WIDTH = 64
"""Channels, of whose multiples the kernels read whole ones; others are filled up with zeros."""


def align(
    tokens: Tensor, entities: Tensor, tau: float = 1.0, seed: Tensor | None = None, hard: bool = True
) -> tuple[Tensor, Tensor]:
    """Hard choice of the most similar entity, with the gradient of the soft choice; or the soft choice itself.

    tokens: [..., C]. entities: [K, C], K and C >= 1, fixed: text embeddings. tau: softmax temperature, > 0.
    seed: int64 scalar tensor that draws the Gumbel noise of eq. 4, or None for no noise. The noise is counter-based:
        the same seed gives the same noise on every device.
    hard: False for softmax(cosine / tau + noise) @ entities as the value, too. No kernel computes it: all weights,
        [tokens, K], are in memory, on any device.
    Returns index [...] int64, the entity chosen for each token, and aligned [..., C] = entities[index] in tokens'
    dtype; its gradient is that of softmax(cosine / tau + noise) @ entities. Entities of another dtype are converted to
    the tokens' first. Products are summed, and divided by both norms, in at least fp32. On a GPU memory does not grow
    with K, but for a copy of entities of another dtype, or of a C that is no multiple of 64.
    Raises ValueError or TypeError naming the argument at fault.
    """
    if entities.ndim != 2 or 0 in entities.shape:
        raise ValueError(f"entities must be [K, C] with K, C >= 1, got shape {tuple(entities.shape)}")
    if entities.requires_grad:
        raise ValueError("entities must not require grad: text embeddings are fixed")
    if tokens.ndim == 0 or tokens.shape[-1] != entities.shape[1]:
        raise ValueError(
            f"tokens must have entities' width {entities.shape[1]} in the last dimension, got {tuple(tokens.shape)}"
        )
    for name, x in (("tokens", tokens), ("entities", entities)):
        if not x.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {x.dtype}")
    check_device("entities", entities, tokens)
    if not tau > 0:
        raise ValueError(f"tau must be > 0, got {tau}")
    if seed is not None:
        if seed.numel() != 1 or seed.dtype != torch.int64:
            raise TypeError(f"seed must be one int64 number, got {seed.dtype} of shape {tuple(seed.shape)}")
        check_device("seed", seed, tokens)
    rows, entities = tokens.reshape(-1, tokens.shape[-1]), entities.to(tokens.dtype)
    if hard and takes_kernel(tokens):
        if more := -rows.shape[1] % WIDTH:  # zeros change no cosine
            rows, entities = F.pad(rows, (0, more)), F.pad(entities, (0, more))
        aligned, index, _ = align_by_kernel(rows, entities, tau, seed, len(rows))
        aligned = aligned[:, : tokens.shape[-1]]
    else:
        index, aligned = align_reference(rows, entities, tau, seed, hard)
    return index.view(tokens.shape[:-1]), aligned.reshape(tokens.shape)
