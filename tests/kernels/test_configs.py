"""The table of launch configurations: one row for everything that runs, and an error for all else."""

import itertools

import pytest
import torch

from alt_fast_kernels.attention import MAX_HEAD_DIM
from alt_fast_kernels.configs import ANY_WIDTH, TABLE, arch_of, config_of
from alt_fast_kernels.dispatch import KERNEL_DTYPES
from alt_fast_kernels.launch import padded
from alt_fast_kernels.match import MAX_CHANNELS

pytestmark = pytest.mark.kernel_only

ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")
HEADS = tuple(sorted({padded(dim) for dim in range(1, MAX_HEAD_DIM + 1)}))
TOKENS = tuple(2**i for i in range(4, MAX_CHANNELS.bit_length()))
WIDTHS = {
    "match_metric": TOKENS,
    "match_best": (ANY_WIDTH,),
    "match_plan": (ANY_WIDTH,),
    "merge_fwd": TOKENS,
    "merge_bwd": TOKENS,
    "attention_fwd": HEADS,
    "attention_bwd_q": HEADS,
    "attention_bwd_kv": HEADS,
    "align": (ANY_WIDTH,),
    "align_noisy": (ANY_WIDTH,),
}
"""Block widths that users can reach, by kernel."""


def test_everything_that_can_run_has_a_configuration() -> None:
    for kernel, arch, dtype in itertools.product(WIDTHS, ARCHS, KERNEL_DTYPES):
        for width in WIDTHS[kernel]:
            config = config_of(kernel, arch, dtype, width)
            assert {"num_warps", "num_stages"} < set(config)
            assert "maxnreg" not in config or arch != "gfx942"  # an option of NVIDIA's


def test_no_two_rows_are_for_the_same_kernel() -> None:
    keys = [
        key
        for kernels, archs, dtypes, _ in TABLE
        for key in itertools.product(
            kernels.split(), archs.split(), ("fp32", "half") if dtypes == "any" else dtypes.split()
        )
    ]
    assert len(keys) == len(set(keys))
    assert set(keys) == set(itertools.product(WIDTHS, ARCHS, ("fp32", "half")))


@pytest.mark.parametrize(
    ("kernel", "arch", "dtype", "width"),
    [
        ("attention_fwd", "sm_90", torch.float16, 256),
        ("attention_fwd", "sm_90", torch.float64, 64),
        ("attention_fwd", "sm_70", torch.float16, 64),
        ("attention", "sm_90", torch.float16, 64),
        ("merge_fwd", "sm_80", torch.float32, 16384),
    ],
)
def test_a_missing_row_is_an_error(kernel: str, arch: str, dtype: torch.dtype, width: int) -> None:
    with pytest.raises(ValueError, match=f"no row for {kernel} on {arch} in {dtype} at width {width}"):
        config_of(kernel, arch, dtype, width)


def test_the_interpreter_uses_the_rows_of_sm_80() -> None:
    assert arch_of(torch.device("cpu")) == "sm_80"
