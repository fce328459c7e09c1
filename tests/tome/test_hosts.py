"""What docs/hosts.md says of every structure holds, and a host of one's own takes ten lines."""

import copy
import random
import re
from collections import defaultdict
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import alt_fast
from alt_fast.errors import ArgumentError
from alt_fast.tome import layout as layouts
from alt_fast.tome import tokens
from alt_fast.tome.hosts.transformers import PREFIX
from alt_fast.tome.layout import Layout, SelfAttention, Tower
from alt_fast.tome.rotary import merge_turns
from alt_fast.tome.tokens import merge_step
from benchmarks import coverage
from benchmarks.coverage import LEFT_OUT, check, differences, left_out, rows, run
from benchmarks.structures import LIBRARIES, inputs, model_names, structure, timm_left_out

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
    assert (verdict.result, verdict.why) == ("wrong", "merged tokens do not count as their patches would")


def _without_sizes(attend: Any) -> Any:
    def without(*args: Any, **options: Any) -> Tensor:
        *tensors, _ = args
        out: Tensor = attend(*tensors, None, **options)
        return out

    return without


@pytest.mark.parametrize("name", ["DINOv3", "Pixtral"])
def test_positions_that_are_merged_wrong_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "merge_turns", lambda turns, size, plan, _: merge_turns(turns, size, plan, "survivor"))
    verdict = check(structure("transformers", name))
    assert (verdict.result, verdict.why) == ("wrong", "merged tokens do not count as their patches would")


def test_a_prefix_that_is_counted_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PREFIX, "VitPoseBackboneLayer", 1)
    verdict = check(structure("transformers", "ViTPose"))
    assert (verdict.result, verdict.why) == ("wrong", "15 tokens are taken for patches")


def test_tokens_that_merge_where_it_tells_nothing_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last layer alone: no attention reads their sizes."""
    monkeypatch.setattr(
        coverage, "merge_step", lambda at: merge_step(at) if at.layer == at.num_layers - 1 else at.keep()
    )
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


@pytest.mark.parametrize(
    "name", [name for (library, name), (_, said) in ROWS.items() if (library, said) == ("transformers", "taken")]
)
def test_attentions_are_refused_however_they_are_asked_for(name: str) -> None:
    """Before anything is computed, by hosts too that tell their layers nothing."""
    with torch.device("meta"):
        model: Any = alt_fast.apply_patch(structure("transformers", name).build(), r=2)
    with pytest.raises(ArgumentError, match="cannot honour output_attentions"):
        run(model, inputs(model), partial(model, output_attentions=True))
    model.config._attn_implementation = "eager"
    model.config.output_attentions = True
    with pytest.raises(ArgumentError, match="cannot honour output_attentions"):
        run(model, inputs(model))


def test_attentions_of_other_parts_are_given_where_the_tower_is_not_asked() -> None:
    """LLaVA hands its options to its tower since transformers 5.24; one that is given features asks it for nothing."""
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**small, image_size=32, patch_size=8),
        text_config=transformers.LlamaConfig(**small, vocab_size=50),
        image_token_index=49,
        attn_implementation="eager",
    )
    model: Any = transformers.LlavaModel(config).eval()
    tokens, pixels = torch.tensor([[1, *[49] * 16, 2]]), torch.randn(1, 3, 32, 32)
    expected = model(tokens, pixels, output_attentions=True).attentions
    assert [tuple(each.shape) for each in expected] == [(1, 2, 18, 18)] * 2
    alt_fast.apply_patch(model, r=0)
    embeddings = model.get_input_embeddings()(tokens)
    embeddings[0, 1:17] = torch.stack(list(model.get_image_features(pixels).pooler_output))[0]
    attentions = model(inputs_embeds=embeddings, output_attentions=True).attentions
    torch.testing.assert_close(attentions, expected)
    if tuple(map(int, version("transformers").split(".")[:2])) >= (5, 24):
        with pytest.raises(ArgumentError, match="cannot honour output_attentions: it does not compute them"):
            model(tokens, pixels, output_attentions=True)


def test_options_that_are_not_known_to_be_harmless_are_refused() -> None:
    model: Any = alt_fast.apply_patch(structure("transformers", "DINOv3").build().eval(), r=2)
    x = inputs(model)
    expected = model(x).last_hidden_state
    ends = torch.tensor([0, 17, 34])
    for options in (
        {"cu_seq_lens_q": ends},
        {"position_ids": ends},
        {"is_causal": True},
        {"head_mask": torch.zeros(2)},
    ):
        (name,) = options
        with pytest.raises(ArgumentError, match=f"a merging block cannot honour {name}: "):
            model(x, **options)
    told = {"output_hidden_states": [0], "num_items_in_batch": torch.tensor(2), "interpolate_pos_encoding": True}
    assert torch.equal(model(x, **told, is_causal=False, cu_seq_lens_q=None).last_hidden_state, expected)


def test_images_that_flash_attention_keeps_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixtral tells it where each ends, and gives no mask."""
    model: Any = alt_fast.apply_patch(structure("transformers", "Pixtral").build(), r=2)
    with pytest.raises(ArgumentError, match="cannot honour attention_mask"):
        model(torch.randn(2, 3, 64, 64))
    monkeypatch.setattr("transformers.models.pixtral.modeling_pixtral.is_flash_attention_requested", lambda _: True)
    with pytest.raises(ArgumentError, match="cannot honour cu_seq_lens_q"):
        model(torch.randn(2, 3, 64, 64))


class MyBlock(nn.Module):
    """Names that no library has."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_before, self.norm_after = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attention = MyAttention()
        self.gamma = nn.Parameter(torch.full((32,), 0.5))
        self.feed_forward = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor, label: str | None = None, *more: object) -> Tensor:
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


MY_ATTENTION = SelfAttention("to_qkv", "dim_head", after=("to_out",))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(norm1="before", attention="attention"), "MyBlock has no before"),
        (
            Layout(SelfAttention("qkv"), "attention", "norm_before", (), "norm_after", ("feed_forward",)),
            "MyAttention has no qkv",
        ),
        (
            Layout(SelfAttention("to_qkv", "dim_head", after=("to_outt",)), "attention", "norm_before", (), None, ()),
            "MyAttention has no to_outt",
        ),
        (Layout(MY_ATTENTION, "attention", "norm_before"), "MyBlock has no norm2"),
        (
            Layout(MY_ATTENTION, "attention", "norm_before", (), "norm_after"),
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


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Layout, {"mlp": "feed_forward"}, "mlp of a Layout must be a tuple of names, got 'feed_forward'"),
        (Layout, {"mlp": ["feed_forward"]}, "mlp of a Layout must be a tuple of names, got ['feed_forward']"),
        (Layout, {"after_attention": "gamma"}, "after_attention of a Layout must be a tuple of names, got 'gamma'"),
        (Layout, {"options": (1,)}, "options of a Layout must be a tuple of names, got (1,)"),
        (SelfAttention, {"after": "out"}, "after of a SelfAttention must be a tuple of names, got 'out'"),
        (SelfAttention, {"qkv": ("q", "k")}, "qkv of a SelfAttention must be a tuple of 3 names, got ('q', 'k')"),
        (SelfAttention, {"qk_norm": ("q",)}, "qk_norm of a SelfAttention must be a tuple of 2 names, got ('q',)"),
    ],
)  # a forgotten comma makes a name of a tuple, and its letters name no parts
def test_names_of_a_layout_are_tuples(kind: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        kind(**fields)


LAYOUT = Layout(
    MY_ATTENTION,
    "attention",
    "norm_before",
    ("gamma",),
    "norm_after",
    ("feed_forward",),
)


@pytest.mark.parametrize("wrap", [None, "nested", "checkpoint", "compiled"])
def test_blocks_of_ones_own_host_may_lie_anywhere(wrap: str | None) -> None:
    """Below modules that hold only some of them merging goes on from one to the next."""
    model, x = MyViT(), torch.randn(2, 33, 32)

    def find_tower(module: nn.Module) -> Tower | None:
        blocks: list[nn.Module] = [each for each in model.modules() if isinstance(each, MyBlock)]
        return Tower(blocks, 1, {MyBlock: LAYOUT}) if module is model else None

    expected = alt_fast.apply_patch(copy.deepcopy(model), 4, find_tower=lambda each: own_tower(each, 1))(x)
    if wrap == "nested":
        model.layers = nn.ModuleList([nn.Sequential(*model.layers[:2]), nn.Sequential(model.layers[2])])
    elif wrap == "checkpoint":
        model.layers = nn.ModuleList(checkpoint_wrapper(layer) for layer in model.layers)
    elif wrap == "compiled":
        compiled: list[Any] = [torch.compile(layer, backend="eager") for layer in model.layers]
        model.layers = nn.ModuleList(compiled)
    alt_fast.apply_patch(model, 4, trace_source=True, find_tower=find_tower)
    torch.testing.assert_close(model(x), expected)
    assert alt_fast.merge_trace(model).size.shape == (2, 33 - 12)


def own_tower(module: nn.Module, protected: int) -> Tower | None:
    return Tower([*module.layers], protected, {MyBlock: LAYOUT}) if isinstance(module, MyViT) else None


def test_parts_of_an_attention_that_nobody_names_are_left_alone() -> None:
    """Another one than timm's may have a `norm` before its projections, or a `gate` of another kind."""
    model, x = MyViT(), torch.randn(2, 33, 32)
    expected = model(x)
    layer: Any
    for layer in model.layers:
        layer.attention.norm = layer.attention.gate = nn.LayerNorm(32)
    alt_fast.apply_patch(model, 0, find_tower=lambda module: own_tower(module, 1))
    torch.testing.assert_close(model(x), expected)
    for name in ("inner_norm", "gate"):
        with pytest.raises(ArgumentError, match=f"{name} of a SelfAttention must be a name or None, got ''"):
            SelfAttention(**{name: ""})  # type: ignore[arg-type]


def test_biases_of_queries_and_values_alone() -> None:
    """BEiT's attention, as VideoMAE's and EVA's repositories have it."""
    model, x = MyViT(), torch.randn(2, 33, 32)
    q_bias, v_bias = torch.randn(2, 32)
    for layer in model.layers:
        with torch.no_grad():
            layer.attention.to_qkv.bias.copy_(torch.cat((q_bias, torch.zeros(32), v_bias)))
    expected = model(x)
    for layer in model.layers:
        layer.attention.to_qkv.bias = None
        layer.attention.q_bias, layer.attention.v_bias = nn.Parameter(q_bias), nn.Parameter(v_bias)
    alt_fast.apply_patch(model, 0, find_tower=lambda module: own_tower(module, 1))
    torch.testing.assert_close(model(x), expected)


def test_options_of_ones_own_host_are_named_in_its_layout() -> None:
    model, x = MyViT(), torch.randn(2, 33, 32)

    def find_tower(module: nn.Module, layout: Layout = LAYOUT) -> Tower | None:
        return Tower([*model.layers], 1, {MyBlock: layout}) if module is model else None

    block = alt_fast.apply_patch(model, find_tower=find_tower).layers[0]
    for call in (partial(block, x, "mine"), partial(block, x, label="mine")):
        with pytest.raises(ArgumentError, match="cannot honour label"):
            call()
    with pytest.raises(ArgumentError, match="a merging block takes x, label, got 3 arguments"):
        block(x, None, None)
    with pytest.raises(ArgumentError, match="a merging block takes tokens, as x, and got none"):
        block(label=None)
    alt_fast.apply_patch(model, find_tower=partial(find_tower, layout=replace(LAYOUT, options=("label",))))
    assert torch.equal(block(x, "mine").x, block(x).x)
    assert torch.equal(block(label="mine", x=x).x, block(x).x)


def test_a_block_of_any_arguments_takes_its_tokens_first() -> None:
    class Decorated(MyBlock):
        def forward(self, *args: Any, **options: Any) -> Any:
            return super().forward(*args, **options)

    model, x = MyViT(), torch.randn(2, 33, 32)
    for block in model.layers:
        block.__class__ = Decorated

    def find_tower(module: nn.Module) -> Tower | None:
        return Tower([*model.layers], 1, {Decorated: LAYOUT}) if module is model else None

    plain = model(x)
    torch.testing.assert_close(alt_fast.apply_patch(model, r=0, find_tower=find_tower)(x), plain)


def test_towers_without_blocks_or_layouts_are_refused() -> None:
    model = MyViT()
    with pytest.raises(ArgumentError, match="a tower has a block of MyBlock, and layouts of MyAttention"):
        alt_fast.apply_patch(model, find_tower=lambda _: Tower([*model.layers], 1, {MyAttention: LAYOUT}))
    with pytest.raises(ArgumentError, match="a tower has a block of MyBlock, and layouts of no class"):
        alt_fast.apply_patch(model, find_tower=lambda _: Tower([*model.layers], 1, {}))
    with pytest.raises(ArgumentError, match="blocks of a tower must be at least one, got none"):
        alt_fast.apply_patch(model, find_tower=lambda _: Tower([], 1, {}))
    with pytest.raises(ArgumentError, match="protected must be >= 0, got -1"):
        alt_fast.apply_patch(model, find_tower=lambda _: Tower([*model.layers], -1, {MyBlock: LAYOUT}))
    assert all(type(layer) is MyBlock for layer in model.layers)


def test_what_to_do_where_no_tower_is_found() -> None:
    with pytest.raises(ArgumentError, match=r"knows \(timm, .*describe it with find_tower and a Layout"):
        alt_fast.apply_patch(MyViT())
    with pytest.raises(ArgumentError, match="find_tower knows no module of MyViT"):
        alt_fast.apply_patch(MyViT(), find_tower=lambda _: None)
