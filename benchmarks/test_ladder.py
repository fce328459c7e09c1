"""From eager attention matrices to merged, fused, compiled and captured, a rung at a time: speed, memory, agreement."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.closed_form import VITS, vit_macs
from benchmarks.conftest import RunRace
from benchmarks.encoders import Encoders
from benchmarks.peers import OURS, PLAIN, PUBLISHED

FIRST, LAST = "1 un-merged, attention as matrices", "9 alt_fast, compiled, CUDA graph"
OPS = {"attention", "match", "merge"}


@contextmanager
def kernels_of(ops: set[str]) -> Iterator[None]:
    """The kernels of these ops only; the others run as PyTorch ops."""
    with ExitStack() as stack:
        for op in OPS - ops:
            stack.enter_context(patch(f"alt_fast_kernels.{op}.takes_kernel", return_value=False))
        yield


@pytest.mark.parametrize("r", [8, 13])
def test_ladder(r: int, race: RunRace, encoders: Encoders) -> None:
    gpu, name = encoders.device == "cuda", "vit_base_patch16_224"
    if not gpu and r == 13:
        pytest.skip("on a CPU the ladder is measured at r = 8 only")
    plain, merged, published = (encoders.racing(who, name, r) for who in (PLAIN, OURS, PUBLISHED))
    torch.manual_seed(0)
    images = torch.randn(256 if gpu else 8, 3, 224, 224, device=encoders.device, dtype=encoders.dtype)

    def rung(model: Callable[[Tensor], Tensor], ops: set[str] | None = None) -> Callable[[], Tensor]:
        def step() -> Tensor:
            with torch.inference_mode(), kernels_of(OPS if ops is None else ops):
                return model(images)

        return step

    def as_matrices() -> Tensor:
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
            return plain(images)

    compiled = rung(encoders.racing(OURS, name, r, compiled=True))
    steps: dict[str, Callable[[], Tensor]] = {
        FIRST: as_matrices,
        "2 un-merged, SDPA": rung(plain),
        "3 published ToMe": rung(published),
        "4 alt_fast, PyTorch ops": rung(merged, set()),
    }
    if gpu:
        steps |= {
            "5 alt_fast, + attention": rung(merged, {"attention"}),
            "6 alt_fast, + match": rung(merged, {"attention", "match"}),
            "7 alt_fast, + merge with norm": rung(merged),
        }
    steps |= {"8 alt_fast, compiled": compiled}
    if gpu:
        steps |= {LAST: compiled}
    first = as_matrices()
    agreement = {who: cosine(step(), first) for who, step in steps.items()}
    flop_ratio = vit_macs(VITS[name], 0) / vit_macs(VITS[name], r)
    race(
        f"ladder, {name}, r = {r}, batch {len(images)}, {str(encoders.dtype).removeprefix('torch.')}",
        steps,
        LAST if gpu else "8 alt_fast, compiled",
        FIRST,
        rounds=30 if gpu else 5,
        graphs={LAST},
        skipped={} if gpu else dict.fromkeys(["5 to 7 alt_fast, op by op fused", LAST], "needs a GPU"),
        flop_ratio=dict.fromkeys(list(steps)[2:], flop_ratio),
        cosine_to_first=agreement,
    )


def cosine(found: Tensor, expected: Tensor) -> float:
    """The smallest over the images."""
    return torch.cosine_similarity(found.float(), expected.float()).min().item()
