"""Rotary positions (RoFormer, arXiv 2104.09864): queries and keys turned by tables of cosines and sines."""

from typing import NamedTuple

import torch
from torch import Tensor

from alt_fast_kernels.checks import check_device


class Rotary(NamedTuple):
    """Tables that turn pairs of channels. Merged tokens have the means of theirs: shorter than 1, and of every channel.

    cos, sin: [B or 1, N, H or 1, D], floating, of one shape. A token that is not turned has 1 and 0. By tables of q's
    own 16 bits, as transformers makes them, the kernels turn in that dtype on Hopper and datacentre Blackwell, which is
    the fastest; by all others, and elsewhere, in fp32.
    interleaved: pairs are channels (2c, 2c + 1), timm's default; else (c, c + D / 2), transformers' rotate_half.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool

    @property
    def wants_gradient(self) -> bool:
        """Whether its frequencies are learnt: the kernels have no gradient to tables."""
        return torch.is_grad_enabled() and (self.cos.requires_grad or self.sin.requires_grad)


NOT_TURNED = None, None, False
"""In place of a `Rotary`, to operators."""


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """x [B, N, H, D] -> x * cos + partner(x) * sin, where partner of a pair (a, b) is (-b, a).

    Computed in fp32, or fp64 where x or a table is, and returned in x's dtype. Raises as `check_rotary` does.
    """
    check_rotary(rotary, x)
    cos, sin, interleaved = rotary
    dtype = torch.promote_types(torch.promote_types(x.dtype, cos.dtype), torch.float32)
    wide = x.to(dtype)
    if interleaved:
        first, second = wide[..., ::2], wide[..., 1::2]
        partner = torch.stack((-second, first), -1).flatten(-2)
    else:
        first, second = wide.chunk(2, -1)
        partner = torch.cat((-second, first), -1)
    return (wide * cos + partner * sin).to(x.dtype)


def check_rotary(rotary: Rotary, x: Tensor) -> None:
    """Raise unless the tables suit x [B, N, H, D].

    ValueError for an odd D, and for tables of another shape or on another device; TypeError where not floating.
    """
    if x.ndim != 4 or x.shape[-1] % 2:
        raise ValueError(f"rotary turns pairs of channels of [B, N, H, D]: D must be even, got {tuple(x.shape)}")
    batch, num_tokens, heads, dim = x.shape
    for name, table in (("rotary.cos", rotary.cos), ("rotary.sin", rotary.sin)):
        fits = table.ndim == 4 and table.shape[0] in (1, batch) and table.shape[2] in (1, heads)
        if not (fits and table.shape[1] == num_tokens and table.shape[3] == dim):
            raise ValueError(
                f"{name} must be [{batch} or 1, {num_tokens}, {heads} or 1, {dim}], got {tuple(table.shape)}"
            )
        if not table.is_floating_point():
            raise TypeError(f"{name} must be floating, got {table.dtype}")
        check_device(name, table, x)
    if rotary.sin.shape != rotary.cos.shape:
        raise ValueError(
            f"rotary.sin must have the shape of rotary.cos, {tuple(rotary.cos.shape)}, got {tuple(rotary.sin.shape)}"
        )
