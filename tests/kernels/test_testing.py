"""The check that holds kernels to references fails when it should, and not for one unlucky draw."""

from collections.abc import Callable, Iterator

import pytest
import torch

from alt_fast_kernels.testing import Result, assert_as_accurate

pytestmark = pytest.mark.reference_only  # no kernel takes part


def draws_of(*errors: float) -> Callable[[], list[Result]]:
    """Draws whose kernel errs by so many times PyTorch's error, one after another."""
    remaining: Iterator[float] = iter(errors)
    exact = torch.ones(100, dtype=torch.float64)

    def draw() -> list[Result]:
        off = 1e-3 * torch.randn(100)
        return [((exact + next(remaining) * off).float(), (exact + off).float(), exact)]

    return draw


@pytest.mark.parametrize("errors", [(1.0,), (1.9,), (3.0, 0.9, 0.9, 2.5, 0.9)])
def test_passes(errors: tuple[float, ...]) -> None:
    assert_as_accurate(draws_of(*errors))


@pytest.mark.parametrize(
    "errors", [(2.2,) * 5, (3.0, 1.0, 3.0, 1.0, 3.0), (17.0, *(1.0,) * 4), (torch.nan, *(1.0,) * 4)]
)
def test_fails(errors: tuple[float, ...]) -> None:
    with pytest.raises(AssertionError, match="times those of PyTorch"):
        assert_as_accurate(draws_of(*errors))
