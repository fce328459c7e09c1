"""Residual add, size-weighted merge by a plan (ToMe, section 3) and LayerNorm, in plain PyTorch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from problems.checks import inaccuracy, malformed
from problems.match.reference import ref_kernel as match

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""x and branch [B, N, C]; size [B, N] fp32; a plan's slot, order and start; weight and bias of the norm [C]."""

EPS = 1e-5


def generate_input(
    batch: int, num_tokens: int, width: int, r: int, dtype: str, seed: int, device: torch.device | str = "cpu"
) -> Inputs:
    """Draw tokens, sizes of 1 to 8, and the plan of random keys with a class token."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    x, branch = normal(2, batch, num_tokens, width).to(getattr(torch, dtype))
    size = torch.randint(1, 9, (batch, num_tokens), generator=generator, device=device).float()
    plan = match((normal(batch, num_tokens, 1, 16), r, 1))
    weight, bias = normal(2, width).to(x.dtype)
    return x, branch, size, *plan, weight, bias


def ref_kernel(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Merge: x' [B, N', C] in x's dtype, size' [B, N'], LayerNorm(x') [B, N', C]; sums in fp32, or fp64 as given."""
    x, branch, size, slot, _, start, weight, bias = inputs
    dtype = torch.promote_types(x.dtype, torch.float32)
    weighted = (x + branch).to(dtype) * size[:, :, None]
    index = slot.long()
    new_size = size.new_zeros(len(x), start.shape[1] - 1).scatter_add(1, index, size)
    total = weighted.new_zeros(*new_size.shape, x.shape[2])
    total = total.scatter_add(1, index[:, :, None].expand_as(weighted), weighted)
    out = (total / new_size[:, :, None]).to(x.dtype)
    normed = F.layer_norm(out.to(dtype), out.shape[2:], weight.to(dtype), bias.to(dtype), EPS).to(x.dtype)
    return out, new_size, normed


def check_implementation(inputs: Inputs, output: Any) -> str | None:
    """Say why output is not the merged tokens, their sizes, which are counts, and their norm."""
    names = ("out", "size", "normed")
    at_precision = ref_kernel(inputs)
    if reason := malformed(output, dict(zip(names, at_precision, strict=True))):
        return reason
    if not torch.equal(output[1], at_precision[1]):
        return "size must be the sum of the sizes of every slot's tokens, exactly"
    exact = ref_kernel(tuple(x.double() if x.is_floating_point() else x for x in inputs))  # type: ignore[arg-type]
    for name, got, own, right in zip(names, output, at_precision, exact, strict=True):
        if reason := inaccuracy(name, got, own, right):
            return reason
    return None
