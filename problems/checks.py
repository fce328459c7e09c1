"""What the references share: an output's form, PyTorch's own error as the measure of one, and choices among cosines."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 2.0**26
"""Steps of a unit vector's components in [-1, 1]. Products of two then sum to below 2**53 steps, exactly in fp64."""

NEAR = 2.0**-6
"""How far a near twin's components are drawn off: bf16 confuses the two's cosines, fp32 does not."""


def malformed(output: Any, expected: Mapping[str, Tensor]) -> str | None:
    """Say why output is not a tuple of finite tensors like the expected ones, by name; one tensor stands alone."""
    parts = [output] if len(expected) == 1 else output
    if not isinstance(parts, list | tuple) or len(parts) != len(expected):
        got = f"{len(parts)} things" if isinstance(parts, list | tuple) else type(parts).__name__
        return f"expected ({', '.join(expected)}), got {got}"
    for (name, like), part in zip(expected.items(), parts, strict=True):
        if type(part) is not Tensor:  # a subclass could compute when it is looked at
            return f"{name} must be a torch.Tensor, got {type(part).__name__}"
        if (part.shape, part.dtype, part.device) != (like.shape, like.dtype, like.device):
            return f"{name} must be {_form(like)}, got {_form(part)}"
        if not bool(part.isfinite().all()):
            return f"{name} holds NaN or infinity"
    return None


def _form(x: Tensor) -> str:
    return f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}"


def inaccuracy(name: str, output: Tensor, at_precision: Tensor, exact: Tensor) -> str | None:
    """Say why an output's maximum or RMS error is above twice that of PyTorch at the same precision.

    One rounding of the result's dtype is granted, since PyTorch may be right by luck. exact: in fp64.
    """
    rounding = torch.finfo(output.dtype).eps
    for kind, order, count in (("maximum", torch.inf, 1), ("RMS", 2, exact.numel())):
        error, own, unit = (
            torch.linalg.vector_norm(x, order).item() / count**0.5
            for x in (output.double() - exact, at_precision.double() - exact, exact)
        )
        limit = 2 * own + rounding * unit
        if not error <= limit:
            return f"{name}: {kind} error {error:.3g}, at most {limit:.3g} is allowed; PyTorch's is {own:.3g}"
    return None


def exact_unit(x: Tensor) -> Tensor:
    """Return x [..., C] at length 1 in fp64, on a grid: matmuls of two are exact in whatever order they sum.

    So equal vectors score equally wherever they are; a cosine is off by sqrt(C) * 2^-26 at most.
    """
    return (F.normalize(x.double(), dim=-1) * GRID).round() / GRID


def cosines(a: Tensor, b: Tensor) -> tuple[Tensor, float]:
    """Return the cosines of a [..., n, C] and b [..., m, C] in fp64, and how much two near ones may be off together.

    Each of the two is granted twice the largest error of PyTorch in fp32, and a rounding at 1.
    """
    exact = exact_unit(a) @ exact_unit(b).mT
    at_precision = F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).mT
    own = (at_precision - exact).abs().max().item()
    return exact, 2 * (2 * own + torch.finfo(torch.float32).eps)


def wrong_choice(
    scores: Tensor, chosen: Tensor, tolerance: float, row: Callable[[int], str], column: Callable[[int], int]
) -> str | None:
    """Say which row of scores [R, n] did not choose ([R]) its best, within tolerance, or not the first of equal ones.

    row, column: what a row, and a choice, is called.
    """
    own = scores.gather(1, chosen[:, None])
    first, best = (scores == own).int().argmax(1), scores.argmax(1)
    better = torch.where(own[:, 0] < scores.amax(1) - tolerance, best, first)
    wrong = (better != chosen).nonzero()
    if not len(wrong):
        return None
    i = int(wrong[0])
    took, right = (f"{column(int(x[i]))} (cosine {scores[i, x[i]].item():.7f})" for x in (chosen, better))
    return f"{row(i)} takes {took}, not {right}; of equal ones the lower index wins"
