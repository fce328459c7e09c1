"""The audit: its counts agree on every option of a small ALT, and it fails when an op or a MAC is missed."""

import itertools
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from alt_fast.corpus import Corpus, Entity
from alt_fast.measure.counting import UncountedError
from alt_fast.model.alt import ALT
from alt_fast.model.config import PRESETS
from alt_fast_kernels import match, merge, proportional_attention
from alt_fast_kernels.counting import flop_formulas
from benchmarks.audit import Audit, count_alt, describe, fused_ops_on_cpu, fvcore_count
from benchmarks.closed_form import ALTShape, ViT
from benchmarks.paper import CONTROLS, ROWS, Published
from tests.conftest import few_blocks

ENTITIES = 30


def small(**options: Any) -> tuple[ALT, ALTShape]:
    config = replace(PRESETS["alt_tiny"], **options)
    corpus = Corpus(tuple(Entity(f"entity {i}", "", "object") for i in range(ENTITIES)))
    with few_blocks(2):
        model = ALT(config, corpus if config.query == "entities" else None).eval()
    nn.init.normal_(model.alignment.entities)
    assert isinstance(config.r, int)
    entities = ENTITIES if config.query == "entities" else 0
    vit = ViT(patch=8, width=64, depth=2, num_heads=2, image=48)
    return model, ALTShape(vit, config.frames, config.r, 64, config.depth, 5, entities, config.regions, config.tuning)


@cache
def counts(**options: Any) -> Audit:
    """Of a small ALT."""
    return count_alt(*small(**options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"r": 0, "regions": False},
        {"r": 100},
        {"frames": 3, "depth": 1},
        {"query": "learned"},
        {"query": "frame"},
        {"tuning": "s"},
        {"tuning": "sm"},
        {"tuning": "stm", "frames": 5},
    ],
    ids=str,
)
def test_all_counts_agree(options: dict[str, Any]) -> None:
    found = counts(**options)
    found.check()
    assert len(found.macs) == 4
    assert len(found.norms) == 3


def test_one_mac_too_many_is_noticed() -> None:
    found = counts()
    for counter, name in itertools.chain(
        ((found.macs, n) for n in found.macs), ((found.norms, n) for n in found.norms)
    ):
        counter[name] += 1
        with pytest.raises(AssertionError, match="differ"):
            found.check()
        counter[name] -= 1
    found.check()


def test_an_op_that_nobody_counts_fails() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.inv(x)

    with pytest.raises(UncountedError, match="aten::linalg_inv"):
        fvcore_count(Odd(), (torch.eye(3),))


class EveryOp(nn.Module):
    """Attention of unpacked heads, matching, and merging with the norm inside."""

    def __init__(self, destinations: int = 2) -> None:
        super().__init__()
        self.norm, self.destinations = nn.LayerNorm(16), destinations

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        out = proportional_attention(q, k, k)
        return merge(out, torch.ones(out.shape[:2]), match(q, 3, 1, self.destinations), out, norm=self.norm)[2]


@pytest.mark.parametrize(("destinations", "pairs"), [(2, 4 * 4), (3, 5 * 3)])
def test_handles_equal_the_references(destinations: int, pairs: int) -> None:
    inputs, model = (torch.randn(2, 9, 2, 8), torch.randn(2, 11, 2, 8)), EveryOp(destinations)
    expected = fvcore_count(model, inputs)
    with fused_ops_on_cpu():
        found = fvcore_count(model, inputs)
        with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter:
            model(*inputs)
    assert expected["layer_norm"] == found["layer_norm"] == 5 * 2 * 6 * 16
    macs = {name: sum(count.values()) - count["layer_norm"] for name, count in (("a", expected), ("b", found))}
    assert macs["a"] == macs["b"] == counter.get_total_flops() // 2 == 2 * (2 * 9 * 11 * 16 + pairs * 8)


def test_fused_ops_count_nothing_without_handles() -> None:
    """What a user of fvcore would see, and why the handles exist."""
    inputs = torch.randn(2, 9, 2, 8), torch.randn(2, 11, 2, 8)
    with fused_ops_on_cpu(), torch.no_grad():
        plain = FlopCountAnalysis(EveryOp(), inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counted = {name: flops for name, flops in plain.by_operator().items() if flops}
        assert counted == {"layer_norm": 5 * 2 * 6 * 16}  # fvcore's hooks keep the norm out of the fused merge
        assert {"alt_fast::match", "alt_fast::merge", "alt_fast::attention"} <= set(plain.unsupported_ops())


def test_formulas_count_a_whole_model() -> None:
    model, _ = small()
    inputs = torch.randn(1, 8, 3, 48, 48), torch.randn(5, 64)
    with (
        fused_ops_on_cpu(),
        torch.no_grad(),
        FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter,
    ):
        model(*inputs)
    decoder_attention = 2 * 2 * 2 * 8 * 8 * 64  # SDPA on a CPU: two layers, two products each
    counts_it = any("scaled_dot_product" in str(op) for op in counter.get_flop_counts()["Global"])  # as of PyTorch 2.15
    assert counter.get_total_flops() // 2 == counts().macs["closed form"] - (0 if counts_it else decoder_attention)


def test_a_row_says_what_the_paper_would_need() -> None:
    found = Audit({"a": 9 * 10**9}, {"a": 10**9}, {"alignment": 5 * 10**9}, 10**6, 10**6)
    row = describe(Published("Table", "row", "model", {}, gflops=33, views=3, params=2.0), found)
    assert row["gflops"] == pytest.approx(30)
    assert row["delta_percent"]["gflops"] == pytest.approx(100 * (30 / 33 - 1))
    assert row["delta_percent"]["params"] == pytest.approx(-50)
    assert row["delta_percent"]["tunable"] is None
    assert row["entities_asked_for"] == 6000  # one GFLOP more a view, at one per thousand entities


def test_every_table_is_there() -> None:
    assert Counter(row.table for row in ROWS) == {"Table 1": 6, "Table 7": 5, "Table 8": 4}
    assert len({(row.table, row.row) for row in (*ROWS, *CONTROLS)}) == len(ROWS) + len(CONTROLS)
