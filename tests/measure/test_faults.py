"""Each fault is found in a method that has it, and in no other."""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from alt_fast.measure.counting import UNCOUNTED, count_macs
from alt_fast.measure.faults import FAULTS, _Waits, find_faults, patched
from alt_fast.measure.judge import properties
from alt_fast.measure.observe import block_names
from alt_fast.methods import METHODS
from tests.measure import broken

R = 6


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = timm.create_model("test_vit", img_size=64, num_classes=7, depth=2).eval()
    return made


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def faults_of(model: nn.Module, method: Callable[..., Any], images: Tensor, r: Any = R) -> dict[str, str]:
    claim = getattr(method, "tokens", None)
    claimed = None if claim is None else claim(17, 1, len(model.blocks), r)  # type: ignore[arg-type]
    return {fault.name: fault.seen for fault in find_faults(model, method, r, images, block_names(model), claimed)}


BROKEN = {
    broken.returns_patches: {"output shape"},
    broken.returns_another_dtype: {"output shape"},
    broken.remembers: {"state"},
    broken.keeps_the_first_plan: {"state"},
    broken.ignores_r: {"r ignored"},
    broken.claims_more: {"other tokens"},
    broken.waits: {"host synchronisation"},
    broken.divides_by_zero: {"not finite"},
    broken.changes_weights: {"changed weights"},
    broken.hides_work: {"hidden work"},
}


@pytest.mark.parametrize("method", BROKEN, ids=lambda method: method.__name__)
def test_every_broken_method_has_its_fault_and_no_other(
    method: Callable[..., Any], model: nn.Module, images: Tensor
) -> None:
    before = copy.deepcopy(model.state_dict())
    assert set(faults_of(model, method, images)) == BROKEN[method]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_fault_goes_without_a_broken_method() -> None:
    races_tell = {"too fast"}  # tests/measure/test_judge.py
    assert set().union(*BROKEN.values()) | races_tell == set(FAULTS)


@pytest.mark.parametrize("method", [broken.right, broken.takes_whole_batches_alone])
def test_a_right_method_has_none(method: Callable[..., Any], model: nn.Module, images: Tensor) -> None:
    assert not faults_of(model, method, images)


REDUCTIONS: dict[str, list[Any]] = {
    "mpm": [0, 1, 2, 3, 9],
    "threshold": [-1.0, -0.5, 0.0, 0.5, 0.9, 0.995, 1.0, 0, 1],
    "pool": [0, 1, 2, 5, 8, 200, 0.0, 0.1, 0.5],
}
PER_LAYER: list[Any] = [[3, 0], [0, 0], [99, 99], (3, -0.5), (0, 1.0)]
"""Numbers of tokens that remove none, some, or all that can go: what is not in REDUCTIONS takes pool's and these."""


@pytest.mark.parametrize("name", METHODS)
def test_no_r_of_ours_is_called_ignored(name: str, model: nn.Module, images: Tensor) -> None:
    waits = {"host synchronisation"} if METHODS[name].tokens is None else set()
    for r in REDUCTIONS.get(name, [*REDUCTIONS["pool"], *PER_LAYER]):
        assert faults_of(model, METHODS[name].apply, images, r).keys() <= waits, r


@pytest.mark.parametrize("r", [3, 6, 0, 0.2, 0.0, [2, 3], (2, 0.5)])
def test_an_ignored_r_is_told_whatever_its_kind(r: Any, model: nn.Module, images: Tensor) -> None:
    assert faults_of(model, broken.ignores_r, images, r).keys() == {"r ignored"}


@pytest.mark.parametrize("how", broken.WAITS)
def test_a_wait_is_told_with_its_line(
    how: str, model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)  # there may be no CUDA
    seen = faults_of(model, functools.partial(broken.waits, how=how), images)["host synchronisation"]
    assert f"{broken.WAITS[how][1]} at broken.py:" in seen


def test_a_wait_of_the_model_s_own_is_not_the_method_s(model: nn.Module, images: Tensor) -> None:
    waiting = copy.deepcopy(model)
    waiting.register_forward_pre_hook(lambda module, args: args[0].max().item() and None)
    assert not faults_of(waiting, broken.right, images)
    assert faults_of(waiting, broken.waits, images).keys() == {"host synchronisation"}


def test_what_is_not_deterministic_is_not_called_state(model: nn.Module, images: Tensor) -> None:
    assert not faults_of(model, broken.random_every_time, images)


@pytest.mark.parametrize("how", broken.GOES_ON)
def test_what_does_not_wait_is_not_accused(how: str, model: nn.Module, images: Tensor) -> None:
    assert not faults_of(model, functools.partial(broken.waits, how=how), images)


def test_a_copy_from_a_device_to_a_cpu_waits() -> None:
    with _Waits() as waits, pytest.raises(NotImplementedError):  # it cannot be made, but is seen
        torch.empty(2, device="meta").to(torch.device("cpu"))
    assert [seen.partition(":")[0] for seen in waits.seen] == ["to at test_faults.py"]


def test_what_a_function_returns_is_used_in_place_of_the_model() -> None:
    other = nn.Identity()
    assert patched(nn.Linear(2, 2), lambda model, r: other, 3) is other
    assert isinstance(patched(nn.Linear(2, 2), lambda model, r: None, 3), nn.Linear)


DRAWS: dict[str, Callable[[Tensor], object]] = {
    "rand_like": torch.rand_like,
    "randn_like": torch.randn_like,
    "randint": lambda x: torch.randint(9, (3,)),
    "randint_like": lambda x: torch.randint_like(x, 9),
    "bernoulli": torch.bernoulli,
    "normal": lambda x: torch.normal(x, 1.0),
    "multinomial": lambda x: torch.multinomial(x, 2),
    "exponential_": lambda x: x.clone().exponential_(),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_a_method_may_draw_random_numbers_and_be_counted(draw: str) -> None:
    with torch.no_grad():
        assert count_macs(lambda: DRAWS[draw](torch.full((3, 4), 0.5))) == 0


def test_no_op_is_uncounted_twice() -> None:
    names = [name for group in UNCOUNTED.values() for name in group.split()]
    assert sorted(set(names)) == sorted(names)


def found(model: nn.Module, method: Callable[..., Any], images: Tensor) -> dict[str, str]:
    patched = copy.deepcopy(model)
    method(patched, R)
    return properties(model, patched, images)


def nothing_but_nan(model: nn.Module, r: int) -> None:
    nn.init.constant_(next(model.parameters()), float("nan"))


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_dynamo")
def test_properties_say_yes_or_why_not(model: nn.Module, images: Tensor) -> None:
    of_right = found(model, broken.right, images)
    assert of_right.pop("CUDA graph") == "not tried: needs a GPU"
    assert set(of_right.values()) == {"yes"}
    assert found(model, broken.random_every_time, images)["deterministic"] == "two calls differ"
    assert found(model, nothing_but_nan, images)["deterministic"] == "yes"
    assert found(model, broken.detaches, images)["gradients"].startswith("none for ")
    assert found(model, broken.detaches, images)["gradients"].endswith("such as blocks.0.attn.proj.bias")
    assert "Unsupported" in found(model, broken.breaks_the_graph, images)["compiles without breaks"]
