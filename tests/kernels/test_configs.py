"""The table of launch configurations: one row for everything that runs, and an error for all else."""

import itertools

import pytest
import torch

from alt_fast_kernels import configs
from alt_fast_kernels.align.triton import CHUNK, PADDING
from alt_fast_kernels.attention.backends import MAX_HEAD_DIM
from alt_fast_kernels.attention.triton import height
from alt_fast_kernels.configs import ANY_WIDTH, HOLDS_TOKENS, TABLE, arch_of, config_of
from alt_fast_kernels.dispatch import KERNEL_DTYPES
from alt_fast_kernels.match import MAX_CHANNELS

pytestmark = pytest.mark.kernel_only

ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")
HEADS = tuple(range(1, MAX_HEAD_DIM + 1))
TOKENS = tuple(2**i for i in range(4, MAX_CHANNELS.bit_length()))
WIDTHS = {
    "match_metric": TOKENS,
    "match_best": TOKENS,
    "match_pair": (16, 32, 64, 128),
    "match_pair_wide": (16, 32, 64, 128),
    "match_once": (16, 32, 64, 128),
    "match_sort": (1, 256, 257, 1024),
    "match_search": (ANY_WIDTH,),
    "merge_fwd": TOKENS,
    "merge_bwd": TOKENS,
    "attention_fwd": HEADS,
    "attention_bwd_q": HEADS,
    "attention_bwd_kv": HEADS,
    "attention_fwd_rotary": HEADS,
    "attention_bwd_q_rotary": HEADS,
    "attention_bwd_kv_rotary": HEADS,
    "align_rows": (ANY_WIDTH,),
    "align_fwd": (ANY_WIDTH,),
    "align_fwd_online": (ANY_WIDTH,),
    "align_bwd": (ANY_WIDTH,),
}
"""Widths that users can reach, by kernel."""


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
    assert {key for key in keys if not key[0].endswith(("_tall", "_tallest", "_held"))} == set(
        itertools.product(WIDTHS, ARCHS, ("fp32", "half"))
    )


def test_no_tile_of_entities_is_wider_than_what_is_behind_them() -> None:
    """Columns are read without a mask."""
    widths = {
        config["BLOCK_N"]
        for kernels, _, _, configs in TABLE
        for config in configs.values()
        if kernels.startswith("align_") and "BLOCK_N" in config
    }
    assert max(widths) <= PADDING
    assert all(CHUNK % width == 0 for width in widths)


def test_where_tokens_are_held_there_are_tiles_for_it() -> None:
    for arch, dtype in itertools.product(HOLDS_TOKENS, (torch.float16, torch.bfloat16)):
        assert {"BLOCK_M", "BLOCK_N"} < set(config_of("align_fwd_held", arch, dtype))


def test_tall_tiles_are_those_of_the_kernel_where_there_are_none() -> None:
    assert config_of("attention_fwd_tall", "sm_90", torch.bfloat16, 64)["BLOCK_M"] == 128
    for arch, dtype, width in (
        ("sm_80", torch.bfloat16, 64),
        ("sm_90", torch.float32, 64),
        ("sm_90", torch.float16, 128),
    ):
        assert config_of("attention_fwd_tall", arch, dtype, width) == config_of("attention_fwd", arch, dtype, width)
    kernel, of = "attention_fwd_rotary", ("sm_90", torch.bfloat16)
    assert [config_of(kernel + name, *of, 64)["BLOCK_M"] for name in ("", "_tall", "_tallest")] == [64, 128, 256]
    assert config_of(f"{kernel}_tallest", *of, 128) == config_of(f"{kernel}_tall", *of, 128)


def test_padded_heads_that_are_turned_have_tiles_of_their_own() -> None:
    """Where those of 128 channels would spill."""
    kernel, of = "attention_bwd_kv_rotary", ("sm_90", torch.bfloat16)
    assert config_of(kernel, *of, 72) == config_of(kernel, *of, 120) != config_of(kernel, *of, 128)


def test_tiles_are_as_tall_as_queries_fill() -> None:
    """By tokens, in 12 heads of 256 images and of one."""
    found = {n: (height(3072, n, False), height(3072, n, True), height(12, n, True)) for n in (64, 109, 149, 197, 257)}
    assert found == {
        64: ("", "", ""),
        109: ("_tall", "_tall", ""),
        149: ("", "_tallest", ""),
        197: ("_tall", "_tallest", ""),
        257: ("_tall", "_tall", ""),
    }


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


@pytest.mark.parametrize(
    ("capability", "arch"),
    [
        *(((8, minor), "sm_80") for minor in (0, 6, 9)),
        *(((9, 0), "sm_90"), ((10, 0), "sm_100"), ((10, 3), "sm_100")),
        *(((11, 0), "sm_80"), ((12, 0), "sm_80"), ((12, 1), "sm_80"), ((13, 0), "sm_80")),
    ],
)
def test_rows_are_chosen_by_capability(capability: tuple[int, int], arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is neither Hopper nor a datacentre's Blackwell has 99 KiB of shared memory for a block, or may have."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert configs._arch_of.__wrapped__(torch.device("cuda")) == arch


def test_amd_s_gpus_use_the_rows_of_gfx942(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert configs._arch_of.__wrapped__(torch.device("cuda")) == "gfx942"


def test_the_interpreter_uses_the_rows_of_sm_80() -> None:
    assert arch_of(torch.device("cpu")) == "sm_80"
