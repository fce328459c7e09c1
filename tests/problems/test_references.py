"""References agree with the library's, and checks name what is subtly wrong."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alt_fast_kernels import MergePlan, use_backend
from alt_fast_kernels.dispatch import Backend
from alt_fast_kernels.testing import assert_best_plan
from problems.align.reference import ref_kernel as align
from problems.attention.reference import ref_kernel as attention
from problems.checks import exact_unit
from problems.match.reference import make_plan, sides
from problems.match.reference import ref_kernel as match
from problems.merge.reference import ref_kernel as merge
from problems.trial import OPS, Inputs, Kernel, Problem, load_problem, load_submission
from problems.trial import test as run_test

CPU = torch.device("cpu")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Of new inputs in every run."""
    seed: int = request.config.getoption("--seed") or random.randrange(2**31)
    print(f"repeat with --seed {seed}")
    return seed


def ours(op: str) -> Kernel:
    return load_submission(Path(__file__).parent.parent.parent / "problems" / op / "submission.py")


@pytest.mark.parametrize("op", OPS)
def test_inputs_are_those_of_their_seed(op: str) -> None:
    problem = load_problem(op)
    one, same, other = (problem.generate(**problem.tests[0], seed=seed) for seed in (2**40, 2**40, 1))
    tensors = [x for x in range(len(one)) if isinstance(one[x], Tensor)]
    assert all(torch.equal(one[x], same[x]) for x in tensors)
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_the_library_passes(op: str, backend: Backend, seed: int) -> None:
    problem = load_problem(op)
    with use_backend(backend):
        for shape in problem.tests if backend == "reference" else problem.tests[:1]:  # an interpreter takes its time
            run_test(problem, ours(op), shape, seed, CPU)


@pytest.mark.parametrize("op", OPS)
def test_the_reference_passes(op: str, seed: int) -> None:
    problem = load_problem(op)
    for shape in problem.tests:
        run_test(problem, problem.reference, shape, seed, CPU)


def test_plans_of_the_reference_are_those_that_the_library_takes() -> None:
    problem = load_problem("match")
    for shape in problem.tests:
        key, r, protected = inputs = problem.generate(**shape, seed=7)
        assert_best_plan(MergePlan(*match(inputs), key.shape[1] - r), key, r, protected)


def choices(inputs: Inputs) -> Tensor:
    """Exact cosines of sources to destinations, [B, A, D]."""
    key, _, protected = inputs
    metric = exact_unit(key.double().mean(2))
    sources, destinations = sides(key.shape[1], protected, key.device)
    return metric[:, sources] @ metric[:, destinations].mT


def plan_by(choose: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Kernel:
    """A match whose sources by rank and partners are what `choose` makes of the cosines."""
    return lambda inputs: make_plan(*choose(choices(inputs)), inputs[0].shape[1], *inputs[1:])


def by_rank(best: Tensor) -> Tensor:
    return best.argsort(dim=1, descending=True, stable=True)


def last_partner(scores: Tensor) -> tuple[Tensor, Tensor]:
    best, partner = scores.flip(2).max(2)
    return by_rank(best), scores.shape[2] - 1 - partner


def last_source(scores: Tensor) -> tuple[Tensor, Tensor]:
    best, partner = scores.max(2)
    return best.shape[1] - 1 - by_rank(best.flip(1)), partner


def partner_in_half_precision(scores: Tensor) -> tuple[Tensor, Tensor]:
    return by_rank(scores.amax(2)), scores.bfloat16().argmax(2)


def least_similar(scores: Tensor) -> tuple[Tensor, Tensor]:
    best, partner = scores.max(2)
    return by_rank(best).flip(1), partner


@pytest.mark.parametrize(
    ("choose", "protected", "reason"),
    [
        (last_partner, 1, "of equal ones the lower index wins"),
        (partner_in_half_precision, 1, "takes"),
        (last_source, 1, "the most similar tokens must merge, of equal ones those of lower index"),
        (least_similar, 1, "the most similar tokens must merge"),
        (last_source, 0, "surviving sources must stand by falling cosine, equal ones by index"),
        (least_similar, 0, "surviving sources must stand by falling cosine"),
    ],
)
def test_a_plan_of_other_choices_is_named(
    choose: Callable[[Tensor], tuple[Tensor, Tensor]], protected: int, reason: str
) -> None:
    problem = load_problem("match")
    inputs = problem.generate(20, 101, 3, 32, 13, protected, "float32", seed=0)
    right = plan_by(lambda scores: (by_rank(scores.amax(2)), scores.argmax(2)))
    assert problem.check(inputs, right(inputs)) is None
    assert reason in str(problem.check(inputs, plan_by(choose)(inputs)))


def swapped(x: Tensor, i: int, j: int) -> Tensor:
    x = x.clone()
    x[1, [i, j]] = x[1, [j, i]]
    return x


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (lambda slot, order, start: (slot, order.clamp(max=47), start), "order must name every token once"),
        (lambda slot, order, start: (slot, swapped(order, 0, 1), start), "order must begin with protected tokens"),
        (lambda slot, order, start: (slot, swapped(order, -1, 41), start), "the destinations as last slots"),
        (lambda slot, order, start: (swapped(slot, 1, 3), order, start), "must name the same survivors"),
        (lambda slot, order, start: (slot * (slot > 18), order, start), "must name the same survivors"),
        (lambda slot, order, start: (slot, swapped(order, -1, -2), start), "must stand by slot, then by index"),
        (lambda slot, order, start: (slot, order, start.clamp(max=6)), "start must count the tokens"),
    ],
)
def test_a_plan_that_is_none_is_named(broken: Callable[[Tensor, Tensor, Tensor], Any], rule: str) -> None:
    problem = load_problem("match")
    inputs = problem.generate(2, 49, 2, 16, 7, 1, "float32", seed=0)
    reason = problem.check(inputs, broken(*match(inputs)))
    assert rule in str(reason)
    assert str(reason).startswith("image ")


def joins_no_destination(inputs: Inputs) -> Any:
    slot, order, start = match(inputs)
    slot[0, order[0, -1]] = 0
    return slot, order, start


def survivors_by_falling_index(inputs: Inputs) -> Any:
    slot, order, start = match(inputs)
    kept = slice(1, order.shape[1] - inputs[1] - len(sides(order.shape[1], 1, CPU)[1]))
    order[:, kept] = order[:, kept].flip(1)
    slot.scatter_(1, order[:, kept].long(), torch.arange(kept.start, kept.stop).int().expand(len(order), -1))
    return slot, order, start


def unweighted_mean(inputs: Inputs) -> Any:
    x, branch, size, *rest = inputs
    out, _, normed = merge((x, branch, torch.ones_like(size), *rest))
    return out, merge(inputs)[1], normed


def sizes_of_ones(inputs: Inputs) -> Any:
    x, branch, size, *rest = inputs
    out, _, normed = merge(inputs)
    return out, merge((x, branch, torch.ones_like(size), *rest))[1], normed


def norm_without_bias(inputs: Inputs) -> Any:
    return merge((*inputs[:-1], torch.zeros_like(inputs[-1])))


def no_log_size(inputs: Inputs) -> Any:
    return attention((inputs[0], torch.ones_like(inputs[1])))


def weights_in_half_precision(inputs: Inputs) -> Any:
    q, k, v = inputs[0].permute(2, 0, 3, 1, 4)
    scores = q @ k.mT / q.shape[-1] ** 0.5 + inputs[1].log()[:, None, None]
    return (scores.softmax(-1).bfloat16().float() @ v).transpose(1, 2).flatten(2)


def one_nan(inputs: Inputs) -> Any:
    out = attention(inputs)
    out[0, 0, 0] = torch.nan
    return out


def last_entity(inputs: Inputs) -> Any:
    tokens, entities = inputs
    index = len(entities) - 1 - align((tokens, entities.flip(0)))[0]
    return index, entities[index]


def cosines_in_half_precision(inputs: Inputs) -> Any:
    tokens, entities = (F.normalize(x, dim=1).bfloat16() for x in inputs)
    index = (tokens @ entities.T).argmax(1)
    return index, inputs[1][index]


def unit_entities(inputs: Inputs) -> Any:
    index, aligned = align(inputs)
    return index, F.normalize(aligned, dim=1)


def one_beyond(inputs: Inputs) -> Any:
    index, aligned = align(inputs)
    return index + len(inputs[1]), aligned


@pytest.mark.parametrize(
    ("op", "kernel", "reason"),
    [
        ("match", joins_no_destination, "merged tokens must join a destination"),
        ("match", survivors_by_falling_index, "surviving sources must stand by index"),
        ("merge", unweighted_mean, "out: maximum error"),
        ("merge", sizes_of_ones, "size must be the sum of the sizes"),
        ("merge", norm_without_bias, "normed: maximum error"),
        ("attention", no_log_size, "out: maximum error"),
        ("attention", weights_in_half_precision, "out: maximum error"),
        ("attention", one_nan, "out holds NaN"),
        ("align", last_entity, "of equal ones the lower index wins"),
        ("align", cosines_in_half_precision, "takes"),
        ("align", unit_entities, "aligned must be entities[index]"),
        ("align", one_beyond, "index must be in [0, 150), got"),
    ],
)
def test_what_is_subtly_wrong_is_named(op: str, kernel: Kernel, reason: str) -> None:
    problem: Problem = load_problem(op)
    inputs = problem.generate(**problem.tests[0], seed=0)
    assert problem.check(inputs, problem.reference(inputs)) is None
    assert reason in str(problem.check(inputs, kernel(inputs)))


def test_every_token_of_a_long_list_is_checked() -> None:
    problem = load_problem("align")
    tokens, entities = problem.generate(1500, 20, 16, "float32", seed=0)
    index, _ = align((tokens, entities))
    index[1400] = (index[1400] + 1) % 20
    assert str(problem.check((tokens, entities), (index, entities[index]))).startswith("token 1400 takes")
