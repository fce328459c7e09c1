"""A submission's tricks are named: what it remembers, what it shares, what it changes, what it leaves to later."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from problems.attention.reference import ref_kernel as attention
from problems.trial import Inputs, Kernel, SubmissionError, load_problem, race
from problems.trial import test as run_test

CPU = torch.device("cpu")
SHAPE: dict[str, int | str] = {"batch": 2, "num_tokens": 19, "heads": 2, "head_dim": 8, "dtype": "float32"}
AGAIN = "on new inputs in the same tensors: "


def remembers(copies: bool) -> Kernel:
    """By address."""
    known: dict[int, Tensor] = {}

    def kernel(inputs: Inputs) -> Tensor:
        out = known.setdefault(inputs[0].data_ptr(), attention(inputs))
        return out.clone() if copies else out

    return kernel


def fills_one_buffer() -> Kernel:
    buffer = torch.empty(2, 19, 16)
    return lambda inputs: buffer.copy_(attention(inputs))


def changes_sizes(inputs: Inputs) -> Tensor:
    out = attention(inputs)
    inputs[1].add_(1)
    return out


def gives_a_part_of_the_input(inputs: Inputs) -> Tensor:
    return inputs[0][:, :, 2].flatten(2)


class Lazy(Tensor):
    """Could compute when it is looked at."""


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (remembers(copies=False), f"{AGAIN}the output shares memory with the former call's"),
        (remembers(copies=True), f"{AGAIN}out: maximum error"),
        (fills_one_buffer(), f"{AGAIN}the output shares memory with the former call's"),
        (changes_sizes, "it changes inputs[1]"),
        (gives_a_part_of_the_input, "the output shares memory with the inputs"),
        (lambda inputs: attention(inputs).as_subclass(Lazy), "out must be a torch.Tensor, got Lazy"),
        (lambda inputs: attention(inputs).double(), "out must be [2, 19, 16] float32 on cpu, got [2, 19, 16] float64"),
        (lambda inputs: None, "out must be a torch.Tensor, got NoneType"),
        (lambda inputs: inputs[2], "IndexError: tuple index out of range"),
    ],
)
def test_tricks_are_named(kernel: Kernel, reason: str) -> None:
    with pytest.raises(SubmissionError) as failure:
        run_test(load_problem("attention"), kernel, SHAPE, 0, CPU)
    assert str(failure.value).startswith(reason)


def counted(after: int, kernel: Kernel) -> Kernel:
    """The reference for some calls, then another."""
    calls = iter(range(1000))
    return lambda inputs: attention(inputs) if next(calls) < after else kernel(inputs)


def fails(inputs: Inputs) -> Any:
    raise KeyError("no such tile")


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (lambda: counted(3, remembers(copies=True)), "mine, in a timed call: out: maximum error"),
        (lambda: counted(2, changes_sizes), "mine, in a timed call: it changes inputs[1]"),
        (lambda: counted(2, fails), "mine, in a timed call: KeyError: 'no such tile'"),
    ],
)
def test_what_goes_wrong_in_a_race_is_named(kernel: Callable[[], Kernel], reason: str) -> None:
    with pytest.raises(SubmissionError) as failure:
        race(load_problem("attention"), {"right": attention, "mine": kernel()}, SHAPE, 0, CPU, 4)
    assert str(failure.value).startswith(reason)


def test_who_cannot_run_is_among_the_skipped() -> None:
    found = race(load_problem("attention"), {"right": attention, "mine": fails}, SHAPE, 0, CPU, 2)
    assert found.skipped == {"mine": "KeyError: 'no such tile'"}
    assert len(found.seconds["right"]) == 2


def test_rounds_begin_with_another_and_have_new_inputs() -> None:
    calls: list[tuple[str, float]] = []

    def listed(name: str) -> Kernel:
        def kernel(inputs: Inputs) -> Tensor:
            calls.append((name, inputs[0].sum().item()))
            return attention(inputs)

        return kernel

    result = race(load_problem("attention"), {name: listed(name) for name in "abc"}, SHAPE, 0, CPU, 3)
    assert "".join(name for name, _ in calls) == "abc" + "bca" + "cab" + "abc"
    sums = [seen for _, seen in calls]
    assert sums[::3] == sums[1::3] == sums[2::3]
    assert len(set(sums)) == 4
    assert all(len(seconds) == 3 for seconds in result.seconds.values())
