"""What docs/hosts.md says of every structure holds, and a host of one's own takes ten lines."""

import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import alt_fast
from alt_fast.errors import ArgumentError
from alt_fast.tome import layout as layouts
from alt_fast.tome.hosts.transformers import PREFIX
from alt_fast.tome.layout import Layout, SelfAttention, Tower
from benchmarks import coverage
from benchmarks.coverage import LEFT_OUT, check, differences, left_out, rows
from benchmarks.structures import LIBRARIES, model_names, structure, timm_left_out

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE = (DOCS / "hosts.md").read_text()
ROWS = rows(PAGE)


def test_any_thirty_structures_are_taken_or_refused_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m benchmarks.coverage --check` looks at all of them."""
    monkeypatch.setattr(Tensor, "clamp_", lambda x, **limits: x)  # of no weights, half the time of building models
    for library, name in random.sample(sorted(ROWS), 30):
        with torch.device("meta"):
            model = structure(library, name).build()
        try:
            alt_fast.apply_patch(model)
        except ArgumentError:
            assert ROWS[library, name][1].startswith("refused: "), name
        else:
            assert ROWS[library, name][1] == "taken", name


def test_the_page_stands_for_every_model_of_the_libraries() -> None:
    models: dict[str, int] = defaultdict(int)
    for (library, _), (number, _) in ROWS.items():
        models[library] += number
    names = model_names()
    assert left_out(PAGE) == set(timm_left_out())
    assert {name for library, name in ROWS if library == "transformers"} == set(names["transformers"])
    assert models == {library: len(found) for library, found in names.items()}
    for library, at_least in {"timm": 40, "open_clip": 12, "transformers": 40}.items():
        assert len(taken(library)) >= at_least


def taken(library: str) -> list[str]:
    return [name for (of, name), (_, said) in ROWS.items() if of == library and said == "taken"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_taken_is_right(library: str) -> None:
    """Any five; `python -m benchmarks.coverage` checks all of them."""
    chosen = random.sample(taken(library), 5)
    print(chosen)
    for name in chosen:
        verdict = check(structure(library, name))
        assert verdict.result == "right", f"{name}: {verdict.why}"


@pytest.mark.parametrize(
    ("library", "name"),
    [("transformers", name) for name in ("SigLIP", "V-JEPA 2", "Pixtral")] + [("timm", "vit_base_patch16_siglip_224")],
)
def test_sizes_that_attention_loses_are_noticed_without_prefix_tokens(
    library: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for function in ("proportional_attention", "proportional_attention_qkvpacked"):
        monkeypatch.setattr(layouts, function, _without_sizes(getattr(layouts, function)))
    verdict = check(structure(library, name))
    assert (verdict.result, verdict.why) == ("wrong", "merging equal tokens changes the output")


def _without_sizes(attend: Any) -> Any:
    def without(*args: Any, **options: Any) -> Tensor:
        *tensors, _ = args
        out: Tensor = attend(*tensors, None, **options)
        return out

    return without


def test_a_prefix_that_is_counted_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PREFIX, "VitPoseBackboneLayer", 1)
    verdict = check(structure("transformers", "ViTPose"))
    assert (verdict.result, verdict.why) == ("wrong", "15 tokens are taken for patches")


def test_equal_tokens_that_would_tell_nothing_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of one content: attention returns it, whatever its weights are."""
    monkeypatch.setattr(coverage, "twins", lambda x, num_patches: x[:, -1:].expand_as(x))
    verdict = check(structure("transformers", "I-JEPA"))
    assert verdict.result == "wrong"
    assert "tells nothing" in verdict.why


def test_what_a_page_says_differently_is_told() -> None:
    old = "| timm | a | 2 | taken |\n| timm | b | 1 | refused: it attends in windows |\n| open_clip | c | 1 | taken |\n"
    new = "| timm | a | 2 | taken |\n| timm | b | 1 | taken |\n| transformers | d | 1 | taken |\n"
    assert list(differences(f"{LEFT_OUT}coat, levit\n", f"{LEFT_OUT}levit, one_more\n")) == [
        "timm's module coat is not left out any more",
        "timm's module one_more is new",
    ]
    assert list(differences(old, new)) == [
        "open_clip c: 1 x taken -> none",
        "timm b: 1 x refused: it attends in windows -> 1 x taken",
        "transformers d: none -> 1 x taken",
    ]
    assert list(differences(old, new, "timm")) == ["timm b: 1 x refused: it attends in windows -> 1 x taken"]


def test_the_command_fails_on_a_structure_that_the_page_does_not_have(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(coverage, "structures", lambda: [structure("transformers", "I-JEPA")])
    assert coverage.main(["--check", "--only", "I-JEPA"]) == 0
    page = tmp_path / "hosts.md"
    page.write_text(PAGE.replace("| transformers | I-JEPA |", "| transformers | ViT |"))
    monkeypatch.setattr(coverage, "PAGE", page)
    assert coverage.main(["--check", "--only", "I-JEPA"]) == 1
    printed = capsys.readouterr().out
    assert re.match(r"timm \S+, open_clip \S+, transformers \S+, torch \S+, at \w{7}", printed)
    assert printed.endswith("transformers I-JEPA: none -> 1 x taken\n")
    assert coverage.main(["--markdown", str(page)]) == 0
    assert rows(page.read_text()) == {("transformers", "I-JEPA"): (1, "taken")}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("VitPoseBackbone", {"num_experts": 2, "part_features": 8}, "experts by the data set"),
        ("EomtForUniversalSegmentation", {"num_blocks": 2}, "queries join before the first layer"),
    ],
)
def test_relatives_of_what_is_taken_are_refused(name: str, options: dict[str, int], message: str) -> None:
    import transformers

    cls = getattr(transformers, name)
    with torch.device("meta"):
        model = cls(cls.config_class(num_hidden_layers=2, **options))
    with pytest.raises(ArgumentError, match=message):
        alt_fast.apply_patch(model)


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
