"""What is launched, and on which device: launches are kept by shape, and must not be those of another shape."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from alt_fast_kernels import Rotary, match, proportional_attention, use_backend
from alt_fast_kernels.attention import triton as attention_kernels
from alt_fast_kernels.configs import Arch
from alt_fast_kernels.launch import Launch, recording
from alt_fast_kernels.match import triton as match_kernels
from alt_fast_kernels.prediction.cases import attention_case


def heads(batch: int = 2, tokens: int = 21, num_heads: int = 2, dim: int = 32, **options: Any) -> Tensor:
    return torch.zeros(batch, tokens, num_heads, dim, **options)


def half_of(dim: int = 32) -> Tensor:
    """A view whose strides are those of wider heads."""
    return heads(dim=2 * dim)[..., :dim]


def turned(interleaved: bool, batch: int = 1) -> Rotary:
    return Rotary(torch.ones(batch, 21, 1, 32), torch.zeros(batch, 21, 1, 32), interleaved)


def attend(q: Tensor, keys: Tensor | None = None, **options: Any) -> Tensor:
    keys = q if keys is None else keys
    return proportional_attention(q, keys, keys, **options)


CALLS: list[tuple[Callable[[], object], Arch]] = [
    *((lambda x=x: attend(x), "sm_90") for x in (heads(), heads(3), heads(tokens=22), half_of())),
    (lambda: attend(heads(num_heads=4, dim=16)), "sm_90"),
    (lambda: attend(heads(dtype=torch.bfloat16)), "sm_90"),
    (lambda: attend(heads()), "sm_80"),
    (lambda: attend(heads(), half_of()), "sm_90"),
    (lambda: attend(heads(), heads(tokens=9)), "sm_90"),
    (lambda: attend(heads(), size=torch.ones(2, 21)), "sm_90"),
    (lambda: attend(heads(), rotary=turned(False)), "sm_90"),
    (lambda: attend(heads(), rotary=turned(True)), "sm_90"),
    (lambda: attend(heads(), rotary=turned(False, 2)), "sm_90"),
    *(
        (lambda x=x, options=options: match(x, **options), arch)
        for x in (heads(), heads(40), heads(1, 700), heads(dtype=torch.bfloat16), half_of(), heads(num_heads=4, dim=16))
        for options in ({"r": 4}, {"r": 5}, {"r": 4, "protected": 1}, {"r": 4, "destinations": 4})
        for arch in ("sm_80", "sm_90")
    ),
]
"""They differ from one another in one thing that a launch depends on."""


def launched(call: Callable[[], object], arch: Arch) -> list[Any]:
    with use_backend("triton"), recording(arch) as launches:
        call()
    told = []
    for launch in launches:
        args = [(tuple(x.shape), x.stride(), x.dtype) if isinstance(x, Tensor) else x for x in launch.args]
        told.append((launch.name, launch.grid, args, launch.options))
    return told


def test_a_launch_that_was_kept_is_the_one_that_would_be_made() -> None:
    kept = (attention_kernels._by_shape, match_kernels._parts)
    anew = []
    for call, arch in CALLS:
        for cache in kept:
            cache.cache_clear()
        anew.append(launched(call, arch))
    assert len({str(each) for each in anew}) > 50  # two architectures may have the same tiles
    order = random.Random(0).sample(range(len(CALLS)), len(CALLS))
    for number in 2 * order:
        assert launched(*CALLS[number]) == anew[number]
    assert all(cache.cache_info().hits for cache in kept)


def test_a_kernel_is_launched_on_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    current = [0]

    @contextmanager
    def device_of(x: Any) -> Iterator[None]:
        before, current[0] = current[0], x.get_device()
        yield
        current[0] = before

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **options: seen.append((grid, current[0], options))

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for index in (0, 1):
        x = SimpleNamespace(is_cuda=True, get_device=lambda index=index: index)
        Launch(Kernel(), 3, (x,), {"num_warps": 4}).run()
    Launch(Kernel(), 0, (x,), {}).run()  # an empty grid is nothing to do
    options = {"num_warps": 4, "enable_fp_fusion": True}
    assert seen == [((3,), 0, options), ((3,), 1, options)]
    assert current == [0]


def test_compiled_kernels_say_what_they_take() -> None:
    with pytest.raises(
        ValueError, match="kernels take tensors on a GPU, or under TRITON_INTERPRET=1 on a CPU, not on cpu"
    ):
        Launch(object(), 1, (torch.ones(1, device="cpu"),), {}).run()


def test_strides_that_the_kernels_could_not_multiply_in_32_bits_are_passed_whole() -> None:
    """In units of 8 they would fit, and wrap around where they are multiplied by it again."""
    shape = ("attention_fwd_kernel", "sm_90", torch.bfloat16, False, None, (2, 21, 2, 64), 21, 21)
    for token, unit in ((2**31 - 8, 8), (2**31, 1), (2**34, 1)):
        _, numbers, _, options = attention_kernels._by_shape(*shape, 3 * ((128, token, 64),), (0, 0, 0))
        assert options["UNIT"] == unit
        assert numbers[1] == token // unit
        _, _, tables, options = attention_kernels._by_shape(
            *shape[:4], "halves", *shape[5:], ((0, 64, 64),), (0, token, 0)
        )
        assert (options["UNIT"], tables[1]) == (unit, token // unit)


def test_a_gradient_costs_no_tensor_that_nobody_reads() -> None:
    """Such as zeros for the gradient of what has none."""
    for case in (attention_case(2, 21, 2, 32, backward=True), attention_case(2, 21, 2, 32, sized=False, backward=True)):
        launches, around = case.recorded("sm_90")
        assert [launch.name for launch in launches] == ["attention_bwd_q", "attention_bwd_kv"]
        assert around == []
