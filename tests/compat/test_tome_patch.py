"""Models patched under the names of the published ToMe merge as `model.r` says, and tell what happened."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import alt_fast
import alt_fast.compat.tome as tome
from alt_fast.compat.tome.utils import parse_r
from alt_fast.tome.hosts.torchvision import find_swag
from tests.tome.test_patch import OwnBlock


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


OPTIONS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 2,
    "num_classes": 5,
}


def randomized(model: nn.Module) -> Any:
    with torch.no_grad():  # weights large enough that tokens differ
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def timm_vit(**options: Any) -> Any:
    return randomized(timm.models.VisionTransformer(**OPTIONS, **options))


def distilled() -> Any:
    return randomized(timm.models.deit.VisionTransformerDistilled(**OPTIONS))


def torchvision_vit() -> Any:
    from torchvision.models import VisionTransformer

    return randomized(VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5))


class Autoencoder(timm.models.VisionTransformer):
    """As fine-tuned masked autoencoders are written: features are pooled where they are made."""

    def __init__(self, global_pool: bool, **options: Any) -> None:
        super().__init__(**options)
        self.global_pool = global_pool
        self.final_norm = nn.LayerNorm(self.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        x = self._pos_embed(self.patch_embed(x))
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x[:, 1:].mean(1) if self.global_pool else x[:, 0])


class EncoderBlock(nn.Module):
    """A block by SWAG's names, whose tokens are [N, B, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.self_attention = nn.MultiheadAttention(32, 2)
        self.dropout = nn.Dropout(0.0)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.dropout(self.self_attention(normed, normed, normed, need_weights=False)[0])
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    """A tower by SWAG's names."""

    def __init__(self, classifier: str) -> None:
        super().__init__()
        self.classifier = classifier
        self.conv_proj = nn.Conv2d(3, 32, 8, 8)
        if classifier == "token":
            self.class_token = nn.Parameter(torch.zeros(1, 1, 32))
        self.encoder = nn.Module()
        self.encoder.layers = nn.Sequential(*(EncoderBlock() for _ in range(3)))
        self.encoder.ln = nn.LayerNorm(32)
        self.trunk_output, self.head = nn.Identity(), nn.Linear(32, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_proj(images).flatten(2).permute(2, 0, 1)
        if self.classifier == "token":
            x = torch.cat([self.class_token.expand(-1, x.shape[1], -1), x])
        x = self.encoder.ln(self.encoder.layers(x))
        return self.head(self.trunk_output(x[0] if self.classifier == "token" else x.mean(0)))


def swag_vit(classifier: str = "token") -> Any:
    return randomized(VisionTransformer(classifier))


def swag_vit_of_own_blocks() -> Any:
    model = swag_vit()
    model.encoder.layers[1].__class__ = type("OwnBlock", (EncoderBlock,), {})
    return model


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

MODELS: dict[str, tuple[Callable[[], Any], Callable[..., None], bool]] = {
    "timm": (timm_vit, tome.patch.timm, True),
    "timm, average": (lambda: timm_vit(class_token=False, global_pool="avg"), tome.patch.timm, True),
    "timm, distilled": (distilled, tome.patch.timm, True),
    "swag": (torchvision_vit, tome.patch.swag, True),
    "swag, its own": (swag_vit, tome.patch.swag, True),
    "swag, average": (lambda: swag_vit("gap"), tome.patch.swag, True),
    "mae": (lambda: timm_vit(global_pool="avg"), tome.patch.mae, False),
}
"""Models, their patches, and whether attention counts sizes when nothing is said."""


@pytest.mark.parametrize("name", MODELS)
def test_r_steers_a_patched_model(name: str) -> None:
    build, patch, prop_attn = MODELS[name]
    model = build()
    host, plain, expected = type(model), copy.deepcopy(model), model(IMAGES)
    find_tower = find_swag if host is VisionTransformer else None
    assert patch(model) is None
    assert isinstance(model, host)
    assert model.r == 0
    torch.testing.assert_close(model(IMAGES), expected, rtol=1e-5, atol=1e-5)
    for r in (3, (2, -1.0), [1, 4], 0, 100):
        model.r = r
        assert model.r == r
        ours = alt_fast.apply_patch(copy.deepcopy(plain), parse_r(3, r), prop_attn, find_tower=find_tower)
        assert torch.equal(model(IMAGES), ours(IMAGES))
    model.r = [1, 2]
    for change in (lambda: model.r.append(0), lambda: model.r.__setitem__(0, 4), model.r.sort):
        with pytest.raises(ValueError, match=r"a list in model\.r is set as a whole: model\.r = \[\.\.\.\]"):
            change()
    assert copy.deepcopy(model.r) == pickle.loads(pickle.dumps(model.r)) == [1, 2] == model.r
    model.r = 3
    patch(model, prop_attn=not prop_attn)  # again: as new
    assert model.r == 0
    model.r = 3
    assert torch.equal(
        model(IMAGES), alt_fast.apply_patch(copy.deepcopy(plain), 3, not prop_attn, find_tower=find_tower)(IMAGES)
    )
    alt_fast.remove_patch(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert set(vars(model)) == set(vars(plain))
    assert torch.equal(model(IMAGES), expected)


@pytest.mark.parametrize("name", MODELS)
def test_info_tells_what_happened(name: str) -> None:
    build, patch, _ = MODELS[name]
    model = build()
    patch(model, trace_source=True)
    model.r = 3
    info = model._tome_info
    assert set(info) == {"r", "size", "source", "trace_source", "prop_attn", "class_token", "distill_token"}
    assert (info["r"], info["trace_source"], info["size"], info["source"]) == (3, True, None, None)
    assert info["prop_attn"] == (name != "mae")
    assert info["class_token"] == (name not in ("timm, average", "swag, average"))
    assert info["distill_token"] == (name == "timm, distilled")
    model(IMAGES)
    info = model._tome_info
    num_tokens = 16 + info["class_token"] + info["distill_token"]
    assert info["size"].shape == (2, num_tokens - 9, 1)
    assert torch.equal(info["source"].sum(2, keepdim=True), info["size"])
    assert torch.equal(info["source"].sum(1), torch.ones(2, num_tokens))
    with pytest.raises(alt_fast.ArgumentError, match=r"_tome_info is read only: set model\.r"):
        info["r"] = 8
    assert type(copy.deepcopy(info)) is dict
    patch(model)
    model(IMAGES)
    assert model._tome_info["source"] is None


def test_patched_models_are_copied_pickled_and_trained() -> None:
    model = timm_vit()
    tome.patch.timm(model)
    model.r = 3
    expected = model(IMAGES)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model)
        assert torch.equal(twin(IMAGES), expected)
        twin.r = 0
        assert not torch.equal(twin(IMAGES), expected)
    assert torch.equal(model(IMAGES), expected)
    expected.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    alt_fast.apply_patch(model, [1, 2, 3])  # by the other door
    assert model.r == [1, 2, 3]


@pytest.mark.parametrize("global_pool", [False, True])
def test_autoencoders_with_features_of_their_own(global_pool: bool) -> None:
    model = randomized(Autoencoder(global_pool, **OPTIONS))
    expected = model(IMAGES)
    with pytest.raises(alt_fast.ArgumentError, match="overrides forward_features"):
        tome.patch.timm(model)
    assert type(model) is Autoencoder
    tome.patch.mae(model, trace_source=True)
    torch.testing.assert_close(model(IMAGES), expected, rtol=1e-5, atol=1e-5)
    model.r = 3
    seen: list[Tensor] = []
    model.final_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    merged = model(IMAGES)
    assert merged.shape == expected.shape
    assert not torch.allclose(merged, expected, atol=1e-3)
    if global_pool:  # the mean over final tokens, weighted by their sizes
        alt_fast.remove_patch(model)
        model.__class__ = timm.models.VisionTransformer
        alt_fast.apply_patch(model, 3, prop_attn=False, trace_source=True, unmerge=False)
        tokens = model.blocks(model._pos_embed(model.patch_embed(IMAGES)))[:, 1:]
        size = alt_fast.merge_trace(model).size[:, 1:, None]
        torch.testing.assert_close(seen[0], (tokens * size).sum(1) / size.sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "patch", "message"),
    [
        (torchvision_vit, tome.patch.timm, "patch.timm takes timm's VisionTransformer; got torchvision"),
        (lambda: nn.Sequential(timm_vit()), tome.patch.timm, "alt_fast.apply_patch knows other models"),
        (lambda: timm.create_model("vit_relpos_small_patch16_224", depth=1), tome.patch.timm, "relative"),
        (
            lambda: timm_vit(block_fn=OwnBlock),
            tome.patch.mae,
            "must be one of timm's Block",
        ),
        (timm_vit, tome.patch.swag, "the VisionTransformer of torchvision .* or of SWAG's repository"),
        (swag_vit_of_own_blocks, tome.patch.swag, "block of SWAG's ViT must be EncoderBlock, got OwnBlock"),
        (torchvision_vit, tome.patch.mae, "timm's VisionTransformer or a subclass"),
    ],
)
def test_what_cannot_be_patched_is_named_and_stays(
    build: Callable[[], Any], patch: Callable[..., None], message: str
) -> None:
    model = build()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(alt_fast.ArgumentError, match=message):
        patch(model)
    assert [type(module) for module in model.modules()] == classes


def test_swag_s_own_merges_every_image_by_itself() -> None:
    """Its tokens are [N, B, C]: images are not taken for tokens."""
    model = swag_vit()
    tome.patch.swag(model)
    model.r = 3
    torch.testing.assert_close(model(IMAGES)[1:], model(IMAGES[1:]), rtol=1e-5, atol=1e-5)


def test_a_bad_r_leaves_the_one_before() -> None:
    model = timm_vit()
    tome.patch.timm(model)
    model.r = 3
    expected = model(IMAGES)
    for r in (-1, [1] * 4, (3, 7.0), 0.5):
        with pytest.raises(alt_fast.ArgumentError):
            model.r = r
        assert model.r == 3
        assert torch.equal(model(IMAGES), expected)
