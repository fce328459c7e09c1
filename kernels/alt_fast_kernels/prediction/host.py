"""What a block's calls cost the host, without a GPU: everything on the way to the driver, and not the driver itself."""

import statistics
import time
from collections.abc import Callable

import torch

from alt_fast_kernels.configs import Arch
from alt_fast_kernels.dispatch import use_backend
from alt_fast_kernels.launch import Launch, intercepted
from alt_fast_kernels.prediction.cases import Case, attention_case, match_case, merge_case
from alt_fast_kernels.prediction.compiled import bind, targeting
from alt_fast_kernels.prediction.towers import Tower

FRAMES = 32
"""More than `match_once` takes, so that a block is four launches, as it is at 256 frames."""


def block_cases(tower: Tower) -> list[Case]:
    """The calls of a block that merges 8 tokens, forward and without gradients."""
    dim, num_tokens = tower.width // tower.heads, tower.tokens
    return [
        attention_case(FRAMES, num_tokens, tower.heads, dim),
        match_case(FRAMES, num_tokens, tower.heads, dim, 8),
        merge_case(FRAMES, num_tokens, 8, tower.width),
    ]


def host_seconds(
    cases: list[Case],
    arch: Arch = "sm_90",
    rounds: int = 15,
    calls: int = 100,
    bind: Callable[[Launch], object] = bind,
    clock: Callable[[], float] = time.thread_time,
) -> dict[str, float]:
    """CPU seconds of one call of each case, by op: medians of rounds of so many calls, the cases in turn.

    In them: our checks and operators, PyTorch's dispatcher and allocator (that of CPUs), and of each launch the
    arguments bound and the compiled kernel looked up by Triton (`bind`). Not in them: the driver, CUDA's allocator, and
    what a model does once, such as to enter `no_grad`.
    """
    found: dict[str, list[float]] = {case.op: [] for case in cases}
    with use_backend("triton"), targeting(arch), intercepted(arch, bind), torch.no_grad():
        prepared = [(case, case.prepare()) for case in cases]
        for case, inputs in prepared:  # compiles
            case.call(inputs)
        for _ in range(rounds):
            for case, inputs in prepared:
                start = clock()
                for _ in range(calls):
                    case.call(inputs)
                found[case.op].append((clock() - start) / calls)
    return {op: statistics.median(seconds) for op, seconds in found.items()}
