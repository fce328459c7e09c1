"""Merge schedules, and attention that knows sizes."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import nn

import alt_fast
from alt_fast.errors import ArgumentError
from alt_fast.tome.attention import ToMeAttention
from alt_fast.tome.layout import Layout, Tower
from alt_fast.tome.schedule import merge_schedule


def test_one_r_for_every_layer() -> None:
    assert merge_schedule(8, 4) == [8, 8, 8, 8]


def test_one_r_per_layer() -> None:
    assert merge_schedule([4, 0, 2], 3) == [4, 0, 2]
    assert merge_schedule([4, 2], 2) == [4, 2]  # two ints are two layers, not (r, inflect)


def test_inflect_moves_merging_early_or_late() -> None:
    assert merge_schedule((8, 0.0), 3) == [8, 8, 8]
    assert merge_schedule((8, -1.0), 3) == [16, 8, 0]
    assert merge_schedule((8, 1.0), 3) == [0, 8, 16]
    assert merge_schedule((8, 0.5), 1) == [4]


@pytest.mark.parametrize(
    ("r", "message"), [(-1, ">= 0"), ([1, 2], "12 ints"), ((8, 1.5), "inflect"), ([-1] * 12, ">= 0")]
)
def test_bad_schedules(r: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge_schedule(r, 12)


def test_fractions() -> None:
    assert merge_schedule(0.1, 3) == [0.1] * 3
    with pytest.raises(ValueError, match="fraction"):
        merge_schedule(0.6, 3)
    with pytest.raises(TypeError, match="r must be"):
        merge_schedule("8", 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("qk_norm", [False, True])
def test_has_the_constructor_state_and_result_of_timm(qk_norm: bool) -> None:
    options = {"num_heads": 4, "qkv_bias": True, "qk_norm": qk_norm, "norm_layer": nn.LayerNorm}
    theirs, ours = Attention(32, **options), ToMeAttention(32, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 32)
    torch.testing.assert_close(ours(x)[0], theirs(x))
    sizes = torch.full((2, 9), 3.0)
    torch.testing.assert_close(ours(x, sizes)[0], theirs(x))  # equal sizes say nothing


def test_takes_over_timm() -> None:
    theirs = Attention(32, num_heads=4, qkv_bias=True)
    ours = ToMeAttention.from_timm(theirs)
    assert ours.qkv.weight is theirs.qkv.weight
    assert type(theirs) is Attention
    x = torch.randn(2, 9, 32)
    torch.testing.assert_close(ours(x)[0], theirs(x))
    with pytest.raises(TypeError, match="must be timm"):
        ToMeAttention.from_timm(nn.Linear(2, 2))


@pytest.mark.parametrize("options", [{"scale_norm": True}, {"gated": True}, {"qk_norm": True}])
def test_has_all_that_timms_has(options: dict[str, bool]) -> None:
    theirs = Attention(32, num_heads=4, norm_layer=nn.LayerNorm, **options)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 9, 32)
    torch.testing.assert_close(ToMeAttention.from_timm(theirs)(x)[0], theirs(x))


def test_a_layout_that_says_nothing_is_timms() -> None:
    model, x = nn.Sequential(Block(32, 4, scale_attn_norm=True)), torch.randn(2, 9, 32)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    expected = model(x)

    def find_tower(module: nn.Module) -> Tower | None:
        return Tower(list(model), 1, {Block: Layout()}) if module is model else None

    alt_fast.apply_patch(model, 0, find_tower=find_tower)
    torch.testing.assert_close(model(x), expected)


def test_what_is_changed_in_one_is_not_in_the_other() -> None:
    """Mode, hooks and parts; parameters are those of both."""
    theirs = Attention(32, num_heads=4, attn_drop=0.5, proj_drop=0.5).train()
    called = []
    theirs.register_forward_hook(lambda *_: called.append("theirs"))
    ours = ToMeAttention.from_timm(theirs).eval()
    assert theirs.attn_drop.training
    assert theirs.proj_drop.training
    torch.testing.assert_close(ours(torch.ones(1, 3, 32))[0], ours(torch.ones(1, 3, 32))[0])
    assert called == []
    projection = theirs.proj
    ours.proj = nn.Identity()
    assert theirs.proj is projection


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_takes_over_multihead(batch_first: bool, bias: bool) -> None:
    theirs = nn.MultiheadAttention(32, 4, bias=bias, batch_first=batch_first).eval()
    ours = ToMeAttention.from_multihead(theirs)
    assert ours.qkv.weight is theirs.in_proj_weight
    x = torch.randn(2, 9, 32)
    y = x if batch_first else x.transpose(0, 1)
    expected = theirs(y, y, y, need_weights=False)[0]
    torch.testing.assert_close(ours(x)[0], expected if batch_first else expected.transpose(0, 1))
    with pytest.raises(ValueError, match="plain self-attention"):
        ToMeAttention.from_multihead(nn.MultiheadAttention(32, 4, kdim=8, vdim=8))


def test_takes_over_huggingface() -> None:
    from transformers import CLIPVisionConfig, ViTConfig
    from transformers.models.clip.modeling_clip import CLIPAttention
    from transformers.models.vit.modeling_vit import ViTAttention

    small = {"hidden_size": 32, "num_attention_heads": 4}
    for theirs in (
        ViTAttention(ViTConfig(**small, attn_implementation="sdpa")).eval(),
        ViTAttention(ViTConfig(**small, qkv_bias=False, attn_implementation="sdpa")).eval(),
        CLIPAttention(CLIPVisionConfig(**small, attn_implementation="sdpa")).eval(),
    ):
        ours = ToMeAttention.from_huggingface(theirs)
        x = torch.randn(2, 9, 32)
        torch.testing.assert_close(ours(x)[0], theirs(x, attention_mask=None)[0])
    with pytest.raises(ValueError, match="has no q_proj"):
        ToMeAttention.from_huggingface(nn.Linear(2, 2))
    theirs.scale = 0.9  # not 1 / sqrt(D)
    theirs.requires_grad_(False)
    ours = ToMeAttention.from_huggingface(theirs)
    torch.testing.assert_close(ours(x)[0], theirs(x, attention_mask=None)[0])
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    theirs.q_norm = nn.LayerNorm(4)
    with pytest.raises(ArgumentError, match="has q_norm, which ToMeAttention does not take over"):
        ToMeAttention.from_huggingface(theirs)
    with pytest.raises(ArgumentError, match=r"must be an nn\.MultiheadAttention itself, got torch\S+\.Module"):
        ToMeAttention.from_multihead(nn.Module())  # type: ignore[arg-type]


def test_an_attention_of_huggingface_that_does_more_than_its_weights_say_is_refused() -> None:
    from transformers import ViTConfig
    from transformers.models.vit.modeling_vit import ViTAttention

    class Tripled(ViTAttention):
        def forward(self, *args: Any, **options: Any) -> Any:
            out, weights = super().forward(*args, **options)
            return 3 * out, weights

    class Adapted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    config = ViTConfig(hidden_size=32, num_attention_heads=4, attn_implementation="sdpa")
    with pytest.raises(ArgumentError, match="must be transformers' own, got Tripled"):
        ToMeAttention.from_huggingface(Tripled(config))
    theirs = ViTAttention(config)
    theirs.v_proj = Adapted(32, 32)
    with pytest.raises(ArgumentError, match=r"q, k and v of ViTAttention must be plain nn\.Linear, got Adapted"):
        ToMeAttention.from_huggingface(theirs)
    theirs = ViTAttention(config)
    theirs.q_proj.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(ArgumentError, match=r"must be plain nn\.Linear, got one with hooks"):
        ToMeAttention.from_huggingface(theirs)


def test_the_readme_block_runs_and_merges() -> None:
    """README's example of a block of one's own, as it stands there."""
    text = (Path(__file__).parent.parent.parent / "README.md").read_text()
    code = re.search(r"<!-- block -->\n```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    names: dict = {}
    exec(code[1], names)
    block = names["Block"](32, 4)
    x, size = block(torch.randn(2, 17, 32), torch.ones(2, 17))
    assert x.shape == (2, 9, 32)
    assert size.sum(1).tolist() == [17, 17]
    x.sum().backward()
