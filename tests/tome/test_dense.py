"""What a host reads between its blocks keeps its grid, as if nothing had merged."""

import copy
import operator
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import timm
import torch
from torch import Tensor, nn

import alt_fast
from alt_fast.errors import ArgumentError
from alt_fast.methods.pool import Pool
from tests.tome.test_patch import build, images, naflex, open_clip_tower, timm_vit
from tests.tome.test_rotary import dinov3

R = [3, 2, 4]


TIMM: dict[str, Callable[[], nn.Module]] = {
    "VisionTransformer": timm_vit,
    "registers": lambda: timm_vit(reg_tokens=4, no_embed_class=True),
    "parallel": lambda: timm_vit(block_fn=timm.models.vision_transformer.ParallelScalingBlock),
    "Eva": lambda: dinov3(img_size=32, patch_size=8, dynamic_img_size=False),
    "NaFlexVit": naflex,
}


@pytest.fixture(params=TIMM)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return TIMM[request.param]().eval()


def test_every_tap_of_timm_is_the_output_of_a_model_that_ends_there(model: Any) -> None:
    x = images()
    plain = model.forward_intermediates(x, intermediates_only=True)
    alt_fast.apply_patch(model, r=0)
    for tap, expected in zip(model.forward_intermediates(x, intermediates_only=True), plain, strict=True):
        torch.testing.assert_close(tap, expected, rtol=1e-4, atol=1e-5)
    alt_fast.apply_patch(model, r=R)
    final, taps = model.forward_intermediates(x, return_prefix_tokens=True)
    assert type(final) is Tensor
    for layer, (tap, prefix) in enumerate(taps):
        assert tap.shape == plain[layer].shape
        cut = alt_fast.remove_patch(copy.deepcopy(model))
        cut.blocks, cut.norm = cut.blocks[: layer + 1], nn.Identity()
        tokens = alt_fast.apply_patch(cut, r=R[: layer + 1], unmerge=True).forward_features(x)
        tokens = tokens["patches"] if isinstance(tokens, dict) else tokens
        torch.testing.assert_close(torch.cat((prefix, tap.flatten(2).mT), 1), tokens, rtol=1e-4, atol=1e-5)


def test_features_only() -> None:
    """timm's wrapper for dense tasks, built around a model: four taps, the strides of a plain ViT."""
    model = timm.create_model(
        "vit_tiny_patch16_224",
        features_only=True,
        out_indices=(0, 1, 2),
        depth=3,
        embed_dim=32,
        num_heads=2,
        img_size=64,
    ).eval()
    x = torch.randn(2, 3, 64, 64)
    plain = model(x)
    found = alt_fast.apply_patch(model, r=R)(x)
    assert [tap.shape for tap in found] == [tap.shape for tap in plain]
    assert all(type(tap) is Tensor for tap in found)
    alt_fast.apply_patch(model, r=R, unmerge=False)
    with pytest.raises(ArgumentError, match="merged tokens have no grid"):
        model(x)
    torch.testing.assert_close(alt_fast.remove_patch(model)(x), plain)


def test_models_pruned_after_they_were_patched(model: Any) -> None:
    x = images()
    alt_fast.apply_patch(model, r=R)
    expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)
    model.prune_intermediate_layers([1], prune_norm=True, prune_head=True)
    assert len(model.blocks) == 2
    torch.testing.assert_close(model.forward_intermediates(x, indices=[1], intermediates_only=True), expected)
    out = model(x)  # its last block did not know that it would be
    assert type(out) is Tensor
    assert out.shape[-1] == 32


def test_taps_may_stay_merged() -> None:
    model: Any = alt_fast.apply_patch(timm_vit().eval(), r=R, unmerge=False)
    taps = model.forward_intermediates(images(), output_fmt="NLC", intermediates_only=True)
    assert [tap.shape[1] for tap in taps] == [13, 11, 7]


def test_taps_of_a_step_that_merges_without_r_have_no_grid() -> None:
    model: Any = alt_fast.apply_patch(timm_vit().eval(), 0, unmerge=False, step=Pool(2))
    with pytest.raises(ArgumentError, match="merged tokens have no grid"):
        model.forward_intermediates(images())


def test_merged_taps_have_no_grid(model: Any) -> None:
    x = images()
    alt_fast.apply_patch(model, r=R, unmerge=False)
    for ask in (model.forward_intermediates, lambda x: model.forward_intermediates(x, None, False, False, False)):
        with pytest.raises(ArgumentError, match="merged tokens have no grid.*output_fmt='NLC'"):
            ask(x)
    if hasattr(model, "get_intermediate_layers"):
        with pytest.raises(ArgumentError, match="merged tokens have no grid.*reshape=False"):
            model.get_intermediate_layers(x, 1, reshape=True)
        assert model.get_intermediate_layers(x, 1)[0].shape[1] < model.patch_embed.num_patches
    alt_fast.apply_patch(model, r=0, unmerge=False)
    assert model.forward_intermediates(x)[1][0].ndim == 4  # nothing has merged


@pytest.mark.parametrize("name", ["Dinov2", "Dinov2WithRegisters", "DINOv3ViT", "Pixio"])
def test_merged_tokens_of_a_backbone_have_no_grid(name: str) -> None:
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = getattr(transformers, f"{name}Config")(**sizes, intermediate_size=64, out_indices=[1, 3])
    model = getattr(transformers, f"{name}Backbone")(config).eval()
    plain = model(images()).feature_maps
    assert [tap.shape for tap in alt_fast.apply_patch(model, r=R)(images()).feature_maps] == [x.shape for x in plain]
    alt_fast.apply_patch(model, r=R, unmerge=False)
    with pytest.raises(ArgumentError, match="merged tokens have no grid.*reshape_hidden_states=False"):
        model(images())
    model.config.reshape_hidden_states = False
    first, last = (tap.shape[1] for tap in model(images()).feature_maps)
    assert first - last == R[1] + R[2]


def test_open_clip() -> None:
    from open_clip.transformer import Transformer

    for batch_first in (True, False):
        model = open_clip_tower()
        model.transformer = Transformer(32, 3, 2, 2.0, batch_first=batch_first)
        plain = model.eval().forward_intermediates(images())["image_intermediates"]
        alt_fast.apply_patch(model, r=R)
        taps = model.forward_intermediates(images())["image_intermediates"]
        assert [tap.shape for tap in taps] == [tap.shape for tap in plain]


@pytest.mark.parametrize("host", ["ViTModel", "CLIPVisionModel", "Dinov2WithRegistersModel"])
def test_hidden_states_of_transformers(host: str) -> None:
    model: Any = build(host)
    plain = model(images(), output_hidden_states=True).hidden_states
    alt_fast.apply_patch(model, r=0)
    for state, expected in zip(model(images(), output_hidden_states=True).hidden_states, plain, strict=True):
        torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)
    alt_fast.apply_patch(model, r=R)
    states = model(images(), output_hidden_states=True).hidden_states
    assert [state.shape for state in states] == [state.shape for state in plain]
    assert all(type(state) is Tensor for state in states)
    assert all(type(state) is Tensor for state in model(images(), output_hidden_states=True, return_dict=False)[-1])
    with pytest.raises(ValueError, match="r must be >= 0"):
        alt_fast.apply_patch(model, r=-1)  # leaves the model as it was
    assert all(type(state) is Tensor for state in model(images(), output_hidden_states=True).hidden_states)
    with pytest.raises(ValueError, match="output_attentions"):
        model(images(), output_attentions=True)


@pytest.mark.parametrize("backbone", ["DINOv2", "its own ViT"])
def test_a_dense_model_of_transformers_on_a_backbone(backbone: str) -> None:
    """DPT reads four layers."""
    import transformers

    vit: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    if backbone == "DINOv2":
        dinov2 = transformers.Dinov2Config(**vit, out_indices=[1, 2, 3, 4], reshape_hidden_states=False)
        vit = {"backbone_config": dinov2}
    else:
        vit |= {"intermediate_size": 64, "backbone_out_indices": [0, 1, 2, 3]}
    config = transformers.DPTConfig(
        **vit, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, reassemble_factors=[1, 1, 1, 1]
    )
    torch.manual_seed(0)
    model = transformers.DPTForDepthEstimation(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    plain = model(images()).predicted_depth
    alt_fast.apply_patch(model, r=0)
    torch.testing.assert_close(model(images()).predicted_depth, plain, rtol=1e-4, atol=1e-5)
    alt_fast.apply_patch(model, r=3)
    merged = model(images()).predicted_depth
    assert merged.shape == plain.shape
    assert not torch.allclose(merged, plain, atol=1e-4)
    alt_fast.remove_patch(model)
    assert torch.equal(model(images()).predicted_depth, plain)


def test_taps_compile() -> None:
    torch.compiler.reset()
    model: Any = alt_fast.apply_patch(timm_vit(depth=2).eval(), r=R[:2])

    def taps(x: Tensor) -> Any:
        return model.forward_intermediates(x, intermediates_only=True)

    compiled = torch.compile(taps, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images()), taps(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["timm", "eva"])
def test_taps_without_prefix_tokens_are_tensors(name: str) -> None:
    """Where timm cuts nothing off, nothing else would have made tensors of them."""
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0}
    kind = timm.models.VisionTransformer if name == "timm" else timm.models.eva.Eva
    model: Any = kind(class_token=False, global_pool="avg", **options).eval()
    host = type(model)
    for _ in range(2):  # patched again, too
        alt_fast.apply_patch(model, r=4)
    assert isinstance(model, host)
    copied = copy.deepcopy(model)
    for patched in (model, copied, pickle.loads(pickle.dumps(model))):
        taps = patched.forward_intermediates(images(), output_fmt="NLC", intermediates_only=True)
        assert [type(tap) for tap in taps] == [Tensor] * 3
        assert [tap.shape for tap in taps] == [(2, 16, 32)] * 3
        final, _ = patched.forward_intermediates(images(), output_fmt="NLC")
        assert type(final) is Tensor
    if name == "timm":
        assert {type(tap) for tap in model.get_intermediate_layers(images(), 3)} == {Tensor}
    copied.prune_intermediate_layers([0], prune_norm=True)
    assert type(copied.forward_features(images())) is Tensor
    with pytest.raises(TypeError, match="r must be a number"):  # leaves it as it was
        alt_fast.apply_patch(model, r="many")  # type: ignore[arg-type]
    assert {type(tap) for tap in model.forward_intermediates(images(), output_fmt="NLC")[1]} == {Tensor}
    assert type(alt_fast.remove_patch(model)) is host


class Pair(NamedTuple):
    """What a model of one's own may return."""

    taps: dict[str, list[Any]]
    final: Any


def test_whatever_a_model_returns_its_taps_in() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower: Any = timm_vit()

        def forward(self, x: Tensor) -> Pair:
            x = self.tower._pos_embed(self.tower.patch_embed(x))
            first = self.tower.blocks[0](x)
            return Pair({"all": [first]}, self.tower.blocks[1](first))

    found = alt_fast.apply_patch(Around().eval(), r=4)(images())
    assert type(found) is Pair
    assert type(found.final) is type(found.taps["all"][0]) is Tensor


IN_PLACE: dict[str, Callable[[Any], object]] = {
    "mul_": lambda tokens: tokens.mul_(0),
    "relu_": lambda tokens: torch.relu_(tokens),
    "relu": lambda tokens: nn.functional.relu(tokens, inplace=True),
    "add": lambda tokens: torch.add(torch.ones(()), 1, out=tokens),
    "assignment": lambda tokens: tokens.__setitem__((slice(None), 0), 0),
    "__iadd__": lambda tokens: operator.iadd(tokens, 2),
    "__isub__": lambda tokens: operator.isub(tokens, 2),
    "__imul__": lambda tokens: operator.imul(tokens, 2),
    "__itruediv__": lambda tokens: operator.itruediv(tokens, 2),
    "__ipow__": lambda tokens: operator.ipow(tokens, 2),
    "__imatmul__": lambda tokens: operator.imatmul(tokens, 2),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_changes_in_place_are_refused(name: str) -> None:
    """They would be lost as soon as something has merged: what a hook is given is a copy."""

    def hook(module: nn.Module, inputs: object, tokens: Any) -> None:
        IN_PLACE[name](tokens)

    model = alt_fast.apply_patch(timm_vit().eval(), r=8)
    model.get_submodule("blocks.1").register_forward_hook(hook)
    with pytest.raises(ArgumentError, match=f"tokens cannot be changed in place, by {name}, as it would be lost"):
        model(images())


def test_a_hook_may_read_tokens_into_other_tensors_and_return_new_ones() -> None:
    read = torch.zeros(2, 17, 32)

    def hook(module: nn.Module, inputs: object, tokens: Any) -> Any:
        assert not hasattr(tokens, "_repr_html_")
        read.copy_(tokens)
        read.add_(tokens)
        accumulated = torch.zeros(2, 17, 32)
        accumulated += tokens
        torch.testing.assert_close(2 * accumulated, read)
        return tokens * torch.linspace(0, 1, 32)

    model = alt_fast.apply_patch(timm_vit().eval(), r=8)
    merged = model(images())
    model.get_submodule("blocks.1").register_forward_hook(hook)
    with torch.no_grad():
        assert not torch.allclose(model(images()), merged)
    assert read.abs().sum() > 0


def test_methods_of_ones_own_that_only_share_a_name_stay_as_they_are() -> None:
    class Around(nn.Module):
        get_intermediate_layers = None

        def __init__(self) -> None:
            super().__init__()
            self.tower: Any = timm_vit()

        @staticmethod
        def forward_features(x: Tensor) -> Tensor:
            return x + 1

        def forward(self, x: Tensor) -> Tensor:
            return self.tower(self.forward_features(x))

    model = alt_fast.apply_patch(Around().eval(), r=4)
    assert type(model) is Around
    assert model(images()).shape == (2, 5)


def test_a_hook_may_reckon_with_what_a_block_returns() -> None:
    """As with the tensor that the host's own block returns: every patch is there."""
    model, image = timm_vit().eval(), images()
    alt_fast.apply_patch(model, r=8)
    found: list[Tensor] = []

    def reckon(module: nn.Module, inputs: object, tokens: Any) -> None:
        dense = tokens.dense()
        whole = torch.ones(())
        pairs = [
            (tokens * 2, dense * 2), (2 * tokens, 2 * dense), (tokens / 2, dense / 2), (-tokens, -dense),
            (tokens - whole, dense - whole), (1 - tokens, 1 - dense), (whole - tokens, whole - dense),
            (tokens + 1, dense + 1), (tokens @ dense.mT, dense @ dense.mT), (dense.mT @ tokens, dense.mT @ dense),
            (tokens**2, dense**2), (1 / tokens, 1 / dense), (2**tokens, 2**dense), (abs(tokens), abs(dense)),
            (tokens > 0, dense > 0), (tokens <= whole, dense <= whole), (tokens * tokens, dense * dense),
        ]  # fmt: skip
        for got, expected in pairs:
            assert type(got) is Tensor
            torch.testing.assert_close(got, expected, rtol=0, atol=0)
        found.append(dense)

    model.get_submodule("blocks.0").register_forward_hook(reckon)
    model(image)
    assert found
