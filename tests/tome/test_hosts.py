"""What docs/hosts.md says of every structure holds, and a host of one's own takes ten lines."""

import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import alt_fast
from alt_fast.errors import ArgumentError
from alt_fast.tome.layout import Layout, SelfAttention, Tower
from benchmarks.coverage import TRANSFORMERS, Structure, check, small_timm, small_transformer

DOCS = Path(__file__).parent.parent.parent / "docs"
ROWS = re.findall(r"^\| (timm|transformers) \| (.+?) \| \d+ \| (\w+)", (DOCS / "hosts.md").read_text(), re.MULTILINE)


def structure(library: str, name: str) -> Structure:
    build = partial(small_timm, name) if library == "timm" else partial(small_transformer, TRANSFORMERS[name])
    return Structure(library, name, 1, build)


def test_every_structure_is_taken_or_refused_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "clamp_", lambda x, **limits: x)  # of no weights, half the time of building models
    assert sum(row[0] == "timm" and row[2] == "taken" for row in ROWS) >= 40
    assert sum(row[0] == "transformers" and row[2] == "taken" for row in ROWS) >= 20
    for library, name, documented in ROWS:
        with torch.device("meta"):
            model = structure(library, name).build()
        try:
            alt_fast.apply_patch(model)
        except ArgumentError:
            assert documented == "refused", name
        else:
            assert documented == "taken", name


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_what_is_taken_is_right(library: str) -> None:
    """Any five; `python -m benchmarks.coverage` checks all of them."""
    taken = [name for of, name, documented in ROWS if of == library and documented == "taken"]
    chosen = random.sample(taken, 5)
    print(chosen)
    for name in chosen:
        verdict = check(structure(library, name))
        assert verdict.result == "right", f"{name}: {verdict.why}"


class MyBlock(nn.Module):
    """Names that no library has."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_before, self.norm_after = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attention = MyAttention()
        self.gamma = nn.Parameter(torch.full((32,), 0.5))
        self.feed_forward = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma * self.attention(self.norm_before(x))
        out: Tensor = x + self.feed_forward(self.norm_after(x))
        return out


class MyAttention(nn.Module):
    """Its names, too."""

    def __init__(self) -> None:
        super().__init__()
        self.dim_head = 16
        self.to_qkv, self.to_out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, 16)).transpose(1, 2) for y in self.to_qkv(x).chunk(3, -1))
        out: Tensor = self.to_out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class MyViT(nn.Module):
    """Three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MyBlock() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_host_of_ones_own_as_documented() -> None:
    code = re.search(r"<!-- host -->\n```python\n(.*?)```", (DOCS / "token_merging.md").read_text(), re.DOTALL)
    assert code is not None
    model, x = MyViT(), torch.randn(2, 33, 32)
    plain = model(x)
    names: dict[str, Any] = {"MyViT": MyViT, "MyBlock": MyBlock, "model": model}
    exec(code[1], names)
    merged = model(x)
    assert merged.shape == plain.shape
    assert not torch.allclose(merged, plain)
    alt_fast.apply_patch(model, r=0, find_tower=names["find_tower"])
    torch.testing.assert_close(model(x), plain)
    alt_fast.remove_patch(model)
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(norm1="before", attention="attention"), "MyBlock has no before"),
        (
            Layout(SelfAttention("qkv"), "attention", "norm_before", (), "norm_after", ("feed_forward",)),
            "MyAttention has no qkv",
        ),
        (Layout(SelfAttention("to_qkv", "dim_head"), "attention", "norm_before"), "MyBlock has no norm2"),
        (
            Layout(SelfAttention("to_qkv", "dim_head"), "attention", "norm_before", (), "norm_after"),
            "MyBlock has no mlp",
        ),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layout: Layout, message: str) -> None:
    model = MyViT()

    def find_tower(module: nn.Module) -> Tower | None:
        return Tower(list(model.layers), 1, {MyBlock: layout}) if module is model else None

    with pytest.raises(ArgumentError, match=message):
        alt_fast.apply_patch(model, find_tower=find_tower)
    assert all(type(layer) is MyBlock for layer in model.layers)
