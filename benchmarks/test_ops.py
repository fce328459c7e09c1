"""Each op alone, beside its alternatives and a copy of the bytes, or a matmul of the MACs, that it cannot avoid."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt_fast_kernels import align, match, merge, proportional_attention_qkvpacked
from alt_fast_kernels.cost import align_cost, attention_cost, match_cost, merge_cost
from benchmarks.conftest import Cut, RunRace
from benchmarks.peers import absent_attention_peers, attention_peers, published_matching

HEADS, HEAD_DIM = 12, 64  # ViT-B
WIDTH = HEADS * HEAD_DIM


def setting(device: str) -> tuple[int, torch.dtype]:
    return (256, torch.bfloat16) if device == "cuda" else (8, torch.float32)


def describe(what: str, batch: int, num_tokens: int, dtype: torch.dtype) -> str:
    return f"{what}: {batch} images, {num_tokens} tokens, ViT-B, {str(dtype).removeprefix('torch.')}"


def copy_of(num_bytes: int, device: str) -> Callable[[], Tensor]:
    """A copy that moves as many bytes, half of them read and half written."""
    source = torch.empty(num_bytes // 2, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def test_ceilings(race: RunRace, device: str) -> None:
    """What this device reaches at most: bytes per second of a large copy, MACs per second of a large matmul."""
    size, num_bytes = (8192, 2**31) if device == "cuda" else (2048, 2**28)
    dtype = setting(device)[1]
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    race(
        f"ceilings, {str(dtype).removeprefix('torch.')}",
        {"copy": copy_of(num_bytes, device), "matmul": torch.inference_mode()(lambda: a @ b)},
        "matmul",
        "copy",
        bytes={"copy": num_bytes},
        macs={"matmul": size**3},
    )


@pytest.mark.parametrize("num_tokens", [189, 101])  # after the first and the last merge but one of ViT-B at r = 8
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_attention(num_tokens: int, backward: bool, race: RunRace, device: str, pytestconfig: pytest.Config) -> None:
    batch, dtype = setting(device)
    qkv = torch.randn(batch, num_tokens, 3, HEADS, HEAD_DIM, device=device, dtype=dtype, requires_grad=backward)
    size = torch.randint(1, 9, (batch, num_tokens), device=device).float()
    flashbias = pytestconfig.getoption("--flashbias")
    attend = {
        **attention_peers(qkv, size, flashbias),
        "alt_fast": lambda: proportional_attention_qkvpacked(qkv, size),
    }

    def step(function: Callable[[], Tensor]) -> Callable[[], object]:
        if not backward:
            return torch.inference_mode()(function)
        upstream = torch.randn_like(function())
        return lambda: torch.autograd.grad(function(), qkv, upstream)

    cost = attention_cost(batch, num_tokens, num_tokens, HEADS, HEAD_DIM, qkv.element_size())
    race(
        describe(f"attention {'forward and backward' if backward else 'forward'}", batch, num_tokens, dtype),
        {name: step(function) for name, function in attend.items()},
        "alt_fast",
        "SDPA, mask",
        skipped=absent_attention_peers(device, flashbias),
        bytes={} if backward else dict.fromkeys(attend, cost.bytes),
        macs=cost.macs * 7 // 2 if backward else cost.macs,
    )


@pytest.mark.parametrize("r", [8, 13])
def test_match_and_merge(r: int, race: RunRace, cut: Cut, device: str) -> None:
    """What stands between attention and MLP: residual add, match, merge, LayerNorm."""
    batch, dtype = setting(device)
    num_tokens = 197
    case = describe(f"add, match, merge, norm, r = {r}", batch, num_tokens, dtype)
    if r != 8:
        cut(case)
    x, branch = torch.randn(2, batch, num_tokens, WIDTH, device=device, dtype=dtype)
    key = torch.randn(batch, num_tokens, 3, HEADS, HEAD_DIM, device=device, dtype=dtype)[:, :, 1]
    size = torch.randint(1, 9, (batch, num_tokens), device=device).float()
    norm = nn.LayerNorm(WIDTH, device=device, dtype=dtype)
    plan = match(key, r, 1)

    def published() -> Tensor:
        total = published_matching(key.mean(2), r)
        sizes = total(size.unsqueeze(-1))
        return norm((total((x + branch) * size.unsqueeze(-1)) / sizes).to(dtype))

    def unmerged() -> Tensor:
        return norm(x + branch)

    def ours() -> Tensor:
        return merge(x, size, match(key, r, 1), branch, norm=norm)[2]

    matching = match_cost(batch, num_tokens, HEADS, HEAD_DIM, 1, x.element_size())
    merging = merge_cost(batch, num_tokens, r, WIDTH, x.element_size(), residual=True, norm=True)
    steps = {
        "un-merged: add, norm": unmerged,
        "un-merged, compiled": torch.compile(unmerged),
        "published": published,
        "published, compiled": torch.compile(published),
        "copy of match's bytes": copy_of(matching.bytes, device),
        "alt_fast match": lambda: match(key, r, 1),
        "copy of merge's bytes": copy_of(merging.bytes, device),
        "alt_fast merge": lambda: merge(x, size, plan, branch, norm=norm),
        "alt_fast, compiled": torch.compile(ours),
        "alt_fast": ours,
    }
    race(
        case,
        {name: torch.inference_mode()(function) for name, function in steps.items()},
        "alt_fast",
        "published, compiled",
        bytes={
            "alt_fast match": matching.bytes,
            "copy of match's bytes": matching.bytes,
            "alt_fast merge": merging.bytes,
            "copy of merge's bytes": merging.bytes,
            "alt_fast": matching.bytes + merging.bytes,
        },
    )


@pytest.mark.parametrize("num_entities", [5000, 100_000])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_align(num_entities: int, backward: bool, race: RunRace, device: str) -> None:
    gpu = device == "cuda"
    if not gpu and num_entities > 5000:
        pytest.skip("100,000 entities take too long on a CPU, where the reference keeps the whole assignment")
    dtype = torch.bfloat16 if gpu else torch.float32
    num_tokens, width = (256 if gpu else 8) * 101, 512  # frames of ALT-B/16 at r = 8
    tokens = torch.randn(num_tokens, width, device=device, dtype=dtype, requires_grad=backward)
    entities = torch.randn(num_entities, width, device=device, dtype=dtype)
    unit = F.normalize(entities, dim=-1)
    seed = torch.tensor(1, device=device) if backward else None

    def in_memory() -> Tensor:
        """The assignment as a matrix, as one would write it."""
        logits = F.normalize(tokens, dim=-1) @ unit.T
        if not backward:
            return entities[logits.argmax(-1)]
        return F.gumbel_softmax(logits, hard=True) @ entities

    def step(function: Callable[[], Tensor]) -> Callable[[], object]:
        if not backward:
            return torch.inference_mode()(function)
        upstream = torch.randn_like(function())
        return lambda: torch.autograd.grad(function(), tokens, upstream)

    macs = align_cost(num_tokens, num_entities, width, tokens.element_size()).macs
    steps = {
        "assignment in memory": step(in_memory),
        "alt_fast": step(lambda: align(tokens, entities, 1.0, seed)[1]),
        "matmul of its shape": torch.inference_mode()(lambda: tokens @ unit.T),
    }
    race(
        f"align {'forward and backward' if backward else 'forward'}: {num_tokens} tokens, {num_entities} entities, "
        f"{str(dtype).removeprefix('torch.')}",
        steps,
        "alt_fast",
        "assignment in memory",
        macs={"matmul of its shape": macs} if backward else {"matmul of its shape": macs, "alt_fast": macs},
    )
