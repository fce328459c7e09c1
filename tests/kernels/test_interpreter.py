"""The interpreter's device arithmetic errs as much as a GPU may, and no more."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from alt_fast_kernels import interpreter
from alt_fast_kernels.launch import Launch

pytestmark = pytest.mark.kernel_only

APPROXIMATE = {
    "divide": (lambda x: interpreter.divide(np.ones_like(x), x), lambda x: 1 / x, 2.0**-23),
    "exp2": (interpreter.exp2, np.exp2, 2.0**-22),
    "sqrt": (interpreter.sqrt, np.sqrt, 2.0**-23),
    "rsqrt": (interpreter.rsqrt, lambda x: x**-0.5, 2.0**-22.9),
}
"""What a GPU approximates: as we do, exactly, and the largest relative error of the PTX manual."""

NUMBERS = np.exp(np.random.default_rng().uniform(-20, 4, 100_000)).astype(np.float32)


@pytest.mark.parametrize("name", list(APPROXIMATE))
def test_results_are_off_by_up_to_what_the_manual_allows(name: str) -> None:
    """But for the last rounding, half a unit in the last place."""
    ours, exact, error = APPROXIMATE[name]
    right = exact(NUMBERS.astype(np.float64))
    off = np.abs(ours(NUMBERS) / right - 1)
    assert 0.9 * error < off.max() <= error + 1.001 * 2.0**-24


@pytest.mark.parametrize(("ours", "exact"), [(interpreter.log, np.log), (interpreter.log2, np.log2)])
def test_logarithms_are_off_by_a_unit_in_the_last_place(ours: Callable, exact: Callable) -> None:
    """libdevice computes them by a polynomial, and scales denormal numbers first; 0 has minus infinity."""
    rounded = exact(NUMBERS)
    units = (ours(NUMBERS).astype(np.float64) - rounded) / np.spacing(np.abs(rounded))
    assert np.abs(units).max() == 1
    assert 0.2 < np.count_nonzero(units) / len(units) < 0.8
    powers = np.array([0.25, 1, 8, 0, np.inf], np.float32)
    with np.errstate(divide="ignore"):
        assert np.array_equal(ours(powers), exact(powers))
    assert ours(np.array([2.0**-140], np.float32)) == pytest.approx(exact(2.0**-140), rel=2.0**-22)


@triton.jit  # type: ignore[untyped-decorator]
def _inexact_kernel(x: Any, out: Any, LENGTH: tl.constexpr) -> None:  # noqa: N803
    i = tl.arange(0, LENGTH)
    number = tl.load(x + i)
    tl.store(out + i, tl.rsqrt(number))
    tl.store(out + LENGTH + i, tl.log2(number))
    tl.store(out + 2 * LENGTH + i, tl.exp2(number))


def test_kernels_compute_with_it() -> None:
    """Compiled on a GPU they keep to the same bounds."""
    x = torch.empty(4096).uniform_(1.5, 4)
    out = torch.empty(3, 4096)
    Launch(_inexact_kernel, 1, (x, out), {"LENGTH": 4096}).run()
    number = x.double()
    exact = torch.stack([number.rsqrt(), number.log2(), number.exp2()])
    off = (out / exact - 1).abs().max(1).values
    bounds = torch.tensor([2.0**-22.9, 2.0**-23, 2.0**-22], dtype=torch.float64) + 2.0**-23
    assert (off <= bounds).all()
    if x.device.type == "cpu":
        assert (off > 0.5 * bounds).all()


@triton.jit  # type: ignore[untyped-decorator]
def _bf16_kernel(x: Any, y: Any, out: Any, LENGTH: tl.constexpr) -> None:  # noqa: N803
    i = tl.arange(0, LENGTH)
    first, second = tl.load(x + i), tl.load(y + i)
    tl.store(out + i, first * second)
    tl.store(out + LENGTH + i, first + second)
    tl.store(out + 2 * LENGTH + i, first - second)
    tl.store(out + 3 * LENGTH + i, -first)


def test_bf16_is_rounded_once_by_every_operation() -> None:
    x, y = torch.randn(2, 4096).bfloat16().unbind(0)
    out = torch.empty(4, 4096, dtype=torch.bfloat16)
    Launch(_bf16_kernel, 1, (x, y, out), {"LENGTH": 4096}).run()
    assert torch.equal(out, torch.stack([x * y, x + y, x - y, -x]))


@triton.jit  # type: ignore[untyped-decorator]
def _dot_kernel(x: Any, y: Any, out: Any, PRECISION: tl.constexpr) -> None:  # noqa: N803
    i = tl.arange(0, 16)
    at = i[:, None] * 16 + i[None, :]
    tl.store(out + at, tl.dot(tl.load(x + at), tl.load(y + at), input_precision=PRECISION))


def test_tf32_is_of_the_upper_bits_alone() -> None:
    """On a GPU, too: a bit that is ignored changes nothing, and ten bits of each operand are kept."""
    x, y = torch.eye(16), torch.rand(16, 16) + 1
    y = (y.view(torch.int32) & ~0x1FFF).view(torch.float32)
    ignored = (y.view(torch.int32) | 0x1FFF).view(torch.float32)
    for given, precision, right in ((y, "tf32", y), (ignored, "tf32", y), (ignored, "ieee", ignored)):
        out = torch.empty(16, 16)
        Launch(_dot_kernel, 1, (x, given, out), {"PRECISION": precision}).run()
        assert torch.equal(out, right)
