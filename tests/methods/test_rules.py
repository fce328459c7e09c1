"""Every method does what its paper's rule says, layer by layer, in a transformer and on tokens full of ties."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt_fast.methods import METHODS
from alt_fast.methods.evit import class_attention, evit_step
from alt_fast.methods.mutual import MutualPairs
from alt_fast.methods.pitome import pitome_step
from alt_fast.methods.threshold import Threshold
from alt_fast.methods.tofu import tofu_step
from alt_fast.tome.block import MergingBlock
from alt_fast.tome.patch import apply_patch, remove_patch
from alt_fast.tome.tokens import Attended, Step, Tokens, merge_step
from tests.methods.rules import RULES, Group, features, sizes
from tests.tome.test_patch import build, distilled, images, timm_vit
from tests.tome.test_rotary import dinov3

R = {"mpm": 3, "threshold": 0.4}
"""A setting of each method that removes tokens in most layers; 3 for the others."""


@dataclass(frozen=True)
class Watched:
    """A step that keeps what it was given and what it returned."""

    step: Step
    seen: list[tuple[Attended, Tokens, Tensor]] = field(default_factory=list)

    def __call__(self, at: Attended) -> tuple[Tokens, Tensor]:
        result = self.step(at)
        self.seen.append((at, *result))
        return result


def blocks_of(model: nn.Module) -> list[MergingBlock]:
    return [block for block in model.modules() if isinstance(block, MergingBlock)]


def watch(model: nn.Module, x: Tensor) -> list[tuple[Attended, Tokens, Tensor]]:
    """What the steps of a patched model do to images, layer by layer."""
    seen: list[tuple[Attended, Tokens, Tensor]] = []
    for block in blocks_of(model):
        block.tome = replace(block.tome, step=Watched(block.tome.step, seen))
    with torch.no_grad():
        model(x)
    return seen


@cache
def random_vit(host: str) -> Any:
    """Four blocks, weights large enough that tokens differ. To be copied before it is patched."""
    torch.manual_seed(0)
    model = HOSTS[host](4).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def check(at: Attended, tokens: Tokens, normed: Tensor, groups: list[list[Group]]) -> None:
    """The tokens that a step returned are those of the groups of each image, in any order; the rest is empty."""
    merged = len(tokens.merges) > len(at.tokens.merges)
    for b, expected in enumerate(groups):
        slot = tokens.merges[-1][0].slot[b].tolist() if merged else list(range(tokens.x.shape[1]))
        size, x, before = tokens.sizes()[b], features(at, b), sizes(at, b)
        places = [slot[members[0]] for members, *_ in expected]
        assert sorted(places) == size.nonzero().flatten().tolist()
        means = []
        for place, (members, weights, factor) in zip(places, expected, strict=True):
            assert {slot[i] for i in members} == {place}
            assert size[place] == sum(before[i] for i in members)
            means.append(factor * torch.tensor(weights).double() @ x[members] / sum(weights))
        torch.testing.assert_close(tokens.x[b, places].double(), torch.stack(means), rtol=1e-4, atol=1e-4)
    assert tokens.x.isfinite().all()
    torch.testing.assert_close(normed, tokens.x if at.norm is None else at.norm(tokens.x), rtol=1e-4, atol=1e-4)


HOSTS: dict[str, Callable[[int], nn.Module]] = {
    "class token": partial(timm_vit, img_size=40),
    "no class token": partial(timm_vit, img_size=40, class_token=False, global_pool="avg"),
    "distilled": distilled,
}
"""By their depth: grids of 5 x 5, and of 4 x 4."""


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", METHODS)
def test_follows_its_rule_in_every_layer(name: str, host: str) -> None:
    if name == "evit" and host == "no class token":
        pytest.skip("EViT refuses it")
    model, r = copy.deepcopy(random_vit(host)), R.get(name, 3)
    METHODS[name].apply(model, r)
    x = torch.randn(3, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(1))
    seen = watch(model, x)
    for at, tokens, normed in seen:
        check(at, tokens, normed, [RULES[name](at, b, r) for b in range(3)])
    assert seen[-1][1].x.shape[1] < seen[0][0].tokens.x.shape[1]


TIED: dict[str, tuple[Step, float]] = {
    "tome": (merge_step, 4),
    "tofu": (tofu_step, 4),
    "pitome": (pitome_step, 4),
    "mpm": (MutualPairs(6), 6),
    "threshold": (Threshold(0.5), 0.5),
}


@pytest.mark.parametrize("layer", [0, 5])
@pytest.mark.parametrize("protected", [0, 1, 2])
@pytest.mark.parametrize("name", TIED)
def test_ties_go_to_the_lower_index(name: str, protected: int, layer: int) -> None:
    """Keys and features have one of four directions, so that most similarities are equal, and exact."""
    step, r = TIED[name]
    random = torch.Generator().manual_seed(2)
    directions = torch.tensor([0, *[1] * 3, *[2] * 4, *[3] * (7 - protected)])
    shuffled = [directions[torch.randperm(len(directions), generator=random)] for _ in range(3)]
    key = torch.eye(4)[F.pad(torch.stack(shuffled), (protected, 0))].unsqueeze(2)
    size = torch.randint(1, 4, (3, 15), generator=random).float()
    size[0, 11:], size[2, 14] = (0, 0) if name in ("mpm", "threshold") else (1, 1)  # some are empty
    x = 2.0 ** torch.arange(15)[:, None] * key[:, :, 0]
    at = Attended(Tokens(x, size), torch.zeros_like(x), key, int(r), protected, layer, 6)
    tokens, normed = step(at)
    check(at, tokens, normed, [RULES[name](at, b, r) for b in range(3)])
    assert tokens.x.shape[1] < 15


def test_evit_keeps_the_lower_index_of_equal_attention() -> None:
    attention = nn.MultiheadAttention(8, 2)
    nn.init.zeros_(attention.in_proj_weight)
    x = torch.randn(2, 10, 8)
    at = Attended(Tokens(x), torch.zeros_like(x), torch.zeros(2, 10, 2, 4), 3, 1, attention=attention, normed=x)
    groups = [Group([i], [1.0]) for i in range(6)] + [Group([6, 7, 8, 9], [0.1] * 4, 0.4)]
    check(at, *evit_step(at), [groups, groups])


def timm_attention(model: nn.Module, block: nn.Module, x: Tensor) -> Tensor:
    """A block's attention weights [B, H, N, N], as timm computes them."""
    found: list[Tensor] = []
    block.attn.fused_attn = False
    handle = block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: found.append(output))
    model(x)
    handle.remove()
    return found[0]


def multihead_attention(model: nn.Module, block: nn.Module, x: Tensor) -> Tensor:
    found: list[Tensor] = []
    attention = next(module for module in block.modules() if isinstance(module, nn.MultiheadAttention))

    def attend(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        normed = block.ln_1(inputs[0])
        found.append(attention(normed, normed, normed, average_attn_weights=False)[1])

    handle = block.register_forward_pre_hook(attend)
    model(x)
    handle.remove()
    return found[0]


def hugging_face_attention(model: nn.Module, block: nn.Module, x: Tensor) -> Tensor:
    model.set_attn_implementation("eager")
    return model(x, output_attentions=True).attentions[0]


def intern_vl() -> Any:
    """One norm over the queries of all heads."""
    import transformers

    options = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.InternVLVisionConfig(image_size=[32, 32], patch_size=[8, 8], use_qk_norm=True, **options)
    model = transformers.InternVLVisionModel(config).eval()
    for block in model.encoder.layer:
        nn.init.normal_(block.attention.q_norm.weight)
    return model


@pytest.mark.parametrize(
    ("host", "attention"),
    [
        ("timm", timm_attention),
        ("timm-dinov2", timm_attention),
        ("rotary", timm_attention),
        ("rotary of a layer", timm_attention),
        ("open_clip", multihead_attention),
        ("torchvision", multihead_attention),
        ("ViTModel", hugging_face_attention),
        ("DeiTModel", hugging_face_attention),
        ("Dinov2Model", hugging_face_attention),
        ("CLIPVisionModel", hugging_face_attention),
        ("InternVL", hugging_face_attention),
    ],
)
def test_evit_ranks_by_what_the_class_token_attends_to(host: str, attention: Any) -> None:
    if host.startswith("rotary"):
        mixed = host != "rotary"
        model: Any = dinov3(rope_type="mixed" if mixed else "dinov3", rope_rotate_half=not mixed)
        x = torch.randn(2, 3, *model.patch_embed.img_size)
    elif host == "InternVL":
        model, x = intern_vl(), images()
    else:
        model, x = build(host), images()
    apply_patch(model, 0)
    at, block = watch(model, x)[0][0], blocks_of(model)[0]
    remove_patch(model)
    with torch.no_grad():
        expected = attention(model, block, x)[:, :, 0, at.protected :].mean(1)
    torch.testing.assert_close(class_attention(at), expected, rtol=1e-4, atol=1e-5)
