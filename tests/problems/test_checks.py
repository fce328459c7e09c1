"""Tolerances follow PyTorch's own error, and choices are judged in double precision."""

import pytest
import torch

from problems.checks import cosines, exact_unit, inaccuracy, malformed, wrong_choice


@pytest.mark.parametrize(("times", "passes"), [(1.0, True), (1.9, True), (2.2, False), (torch.nan, False)])
def test_twice_the_error_of_pytorch_is_allowed(times: float, passes: bool) -> None:
    exact = torch.ones(100, dtype=torch.float64)
    off = 1e-3 * torch.randn(100)
    reason = inaccuracy("out", (exact + times * off).float(), (exact + off).float(), exact)
    assert (reason is None) == passes
    assert passes or str(reason).startswith("out: maximum error")


def test_the_rms_error_counts_too() -> None:
    exact = torch.ones(100, dtype=torch.float64)
    own, off = torch.zeros(100), torch.full((100,), 1e-3)
    own[0] = 1e-3
    assert "RMS error 0.001" in str(inaccuracy("out", (exact + off).float(), (exact + own).float(), exact))


def test_one_rounding_is_granted() -> None:
    exact = torch.tensor([1.0, 0.5], dtype=torch.float64)
    assert inaccuracy("out", torch.tensor([1 + 2**-7, 0.5]).bfloat16(), exact.bfloat16(), exact) is None
    assert inaccuracy("out", torch.tensor([1 + 2**-6, 0.5]).bfloat16(), exact.bfloat16(), exact) is not None


def test_equal_vectors_have_equal_cosines_wherever_they_are() -> None:
    a, b = torch.randn(3, 7, 33), torch.randn(3, 101, 33)
    b[:, 60:90] = b[:, :30]
    scores, tolerance = cosines(a, b)
    assert torch.equal(scores[:, :, 60:90], scores[:, :, :30])
    expected = torch.nn.functional.cosine_similarity(a.double()[:, :, None], b.double()[:, None], dim=-1)
    torch.testing.assert_close(scores, expected, rtol=0, atol=2**-26 * 33**0.5)
    assert 2e-7 < tolerance < 2e-6
    assert exact_unit(torch.zeros(1, 4)).tolist() == [[0.0] * 4]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ([1, 0], None),
        ([2, 0], None),  # as near as a tolerance
        ([3, 0], "row 0 takes 3 (cosine 0.5000000), not 1 (cosine 0.5000000); of equal ones the lower index wins"),
        ([1, 2], "row 1 takes 2 (cosine 0.1000000), not 0 (cosine 0.9000000); of equal ones the lower index wins"),
    ],
)
def test_choices_are_the_first_of_the_best(chosen: list[int], expected: str | None) -> None:
    scores = torch.tensor([[0.1, 0.5, 0.5 - 1e-7, 0.5], [0.9, 0.2, 0.1, 0.2]], dtype=torch.float64)
    assert wrong_choice(scores, torch.tensor(chosen), 1e-6, lambda row: f"row {row}", int) == expected


def test_an_output_s_form_is_named() -> None:
    expected = {"index": torch.zeros(2, dtype=torch.int64), "aligned": torch.zeros(2, 3)}
    index, aligned = expected.values()
    for output, reason in (
        ((index, aligned), None),
        ([index, aligned], None),
        (aligned, "expected (index, aligned), got Tensor"),
        ((index,), "expected (index, aligned), got 1 things"),
        ((index, None), "aligned must be a torch.Tensor, got NoneType"),
        ((index, torch.nn.Parameter(aligned)), "aligned must be a torch.Tensor, got Parameter"),
        ((index.int(), aligned), "index must be [2] int64 on cpu, got [2] int32 on cpu"),
        ((index, aligned.T), "aligned must be [2, 3] float32 on cpu, got [3, 2] float32 on cpu"),
        ((index, aligned.to("meta")), "aligned must be [2, 3] float32 on cpu, got [2, 3] float32 on meta"),
        ((index, aligned + torch.inf), "aligned holds NaN or infinity"),
    ):
        assert malformed(output, expected) == reason
    assert malformed((aligned,), {"aligned": aligned}) == "aligned must be a torch.Tensor, got tuple"
