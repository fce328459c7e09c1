"""apply_patch on every host library: nothing changes at r = 0, and r > 0 is merging as defined."""

import copy
import functools
import io
import pickle
import sys
import types
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import packaging.version
import pytest
import timm
import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager
from torch.nn.utils import prune

import alt_fast
from alt_fast.errors import ArgumentError
from alt_fast.tome.block import refuse_options
from alt_fast.tome.patch import find_towers
from alt_fast.tome.schedule import merge_schedule
from alt_fast_kernels import use_backend
from tests.oracles import match_by_loops

IMAGE = 32


def timm_vit(depth: int = 3, **options: Any) -> nn.Module:
    defaults = {"img_size": IMAGE, "patch_size": 8, "embed_dim": 32, "depth": depth, "num_heads": 2, "num_classes": 5}
    return timm.models.VisionTransformer(**{**defaults, **options})


def dinov2_style(depth: int = 3) -> nn.Module:
    """LayerScale, registers, qk-norm, SwiGLU: what ToMe's own patch passes over."""
    return timm_vit(
        depth, init_values=0.1, reg_tokens=4, no_embed_class=True, qk_norm=True, mlp_layer=timm.layers.SwiGLUPacked
    )


def distilled(depth: int = 3) -> nn.Module:
    options = {"img_size": IMAGE, "patch_size": 8, "embed_dim": 32, "depth": depth, "num_heads": 2, "num_classes": 5}
    return timm.models.deit.VisionTransformerDistilled(**options)


def eva(depth: int = 3, **options: Any) -> nn.Module:
    """Rotary positions, SwiGLU and norms where EVA-02, DINOv3 and Perception Encoder have them."""
    defaults = {"img_size": IMAGE, "patch_size": 8, "embed_dim": 32, "depth": depth, "num_heads": 2, "num_classes": 5}
    return timm.models.eva.Eva(**{**defaults, "use_rot_pos_emb": True, **options})


def naflex(depth: int = 3) -> nn.Module:
    options = {"embed_dim": 32, "depth": depth, "num_heads": 2, "num_classes": 5, "img_size": IMAGE, "patch_size": 8}
    model: nn.Module = timm.create_model("naflexvit_base_patch16_gap", **options)
    return model


def open_clip_tower(depth: int = 3, **options: Any) -> nn.Module:
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(
        image_size=IMAGE, patch_size=8, width=32, layers=depth, heads=2, mlp_ratio=2.0, output_dim=16, **options
    )


def torchvision_vit(depth: int = 3) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(IMAGE, 8, num_layers=depth, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5)


def openai_clip(depth: int = 3) -> nn.Module:
    """From the package, whose tokenizer file asks setuptools for a module that it no longer has."""
    sys.modules.setdefault("pkg_resources", types.SimpleNamespace(packaging=packaging))  # type: ignore[arg-type]
    from clip import model

    return model.VisionTransformer(IMAGE, 8, width=32, layers=depth, heads=2, output_dim=16)


def hugging_face(name: str, depth: int = 3) -> nn.Module:
    import transformers

    kind = name.removesuffix("ForImageClassification").removesuffix("VisionModel").removesuffix("Model")
    config = {"CLIP": "CLIPVisionConfig", "Siglip": "SiglipVisionConfig"}.get(kind, f"{kind}Config")
    config = getattr(transformers, config)(
        hidden_size=32,
        num_hidden_layers=depth,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=IMAGE,
        patch_size=8,
        num_labels=5,
    )
    return getattr(transformers, name)(config)


HOSTS: dict[str, Callable[..., nn.Module]] = {
    "timm": timm_vit,
    "timm-average": partial(timm_vit, class_token=False, global_pool="avg"),
    "timm-attention-pool": partial(timm_vit, class_token=False, global_pool="map"),
    "timm-dinov2": dinov2_style,
    "timm-distilled": distilled,
    **{
        f"timm-{name}": partial(timm_vit, block_fn=getattr(timm.models.vision_transformer, name))
        for name in ("ResPostBlock", "ParallelScalingBlock", "DiffParallelScalingBlock", "ParallelThingsBlock")
    },
    "timm-eva": eva,
    "timm-eva-mixed": partial(eva, rope_type="mixed"),
    "timm-eva-post-norm": partial(eva, use_post_norm=True),
    "timm-naflex": naflex,
    "open_clip": open_clip_tower,
    "open_clip-layerscale-average": partial(open_clip_tower, ls_init_value=0.1, pool_type="avg"),
    "clip": openai_clip,
    "torchvision": torchvision_vit,
    **{
        name: partial(hugging_face, name)
        for name in (
            *("ViTModel", "ViTForImageClassification", "DeiTModel", "CLIPVisionModel", "SiglipVisionModel"),
            *("Dinov2Model", "Dinov2ForImageClassification", "Dinov2WithRegistersModel", "DINOv3ViTModel"),
        )
    },
}
"""Small models of every host, by their depth: three blocks if nothing is said."""


def build(host: str, depth: int = 3) -> nn.Module:
    torch.manual_seed(0)
    model = HOSTS[host](depth=depth).eval()
    with torch.no_grad():  # untrained: weights large enough that tokens differ and every layer matters
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(params=HOSTS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


@pytest.fixture(params=HOSTS)
def shallow(request: pytest.FixtureRequest) -> nn.Module:
    """For tests that trace: the first block and the last. One between them takes and returns what these do."""
    return build(request.param, depth=2)


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1))


def run(model: nn.Module, x: Tensor | None = None) -> Tensor:
    out = model(images() if x is None else x)
    if isinstance(out, tuple):
        return out[0]
    if isinstance(out, Tensor):
        return out
    found = getattr(out, "logits", None)
    return torch.cat([out.pooler_output[:, None], out.last_hidden_state], 1) if found is None else found


def test_r_0_changes_nothing_and_remove_patch_restores(model: nn.Module) -> None:
    before, keys, classes = run(model), list(model.state_dict()), [type(m) for m in model.modules()]
    attributes = [set(vars(m)) for m in model.modules()]
    assert alt_fast.apply_patch(model, r=0) is model
    torch.testing.assert_close(run(model), before, rtol=1e-5, atol=1e-5)
    alt_fast.apply_patch(model, r=3, trace_source=True)
    merged = run(model)
    assert merged.shape == before.shape
    assert not torch.allclose(merged, before, atol=1e-3)
    assert list(model.state_dict()) == keys
    assert alt_fast.remove_patch(model) is model
    assert [type(m) for m in model.modules()] == classes
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert torch.equal(run(model), before)


def test_fused_path_equals_the_reference(model: nn.Module) -> None:
    alt_fast.apply_patch(model, r=3)
    expected = run(model)
    with use_backend("triton"):
        torch.testing.assert_close(run(model), expected, rtol=1e-3, atol=1e-4)


def test_norms_of_ones_own_and_hooks_keep_working_on_the_fused_path() -> None:
    class DoubledNorm(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    seen = []
    model = timm_vit().eval()
    model.blocks[0].norm2 = DoubledNorm(32)
    model.blocks[1].norm2.register_forward_hook(lambda *_: seen.append(1))
    alt_fast.apply_patch(model, r=3)
    expected = run(model)
    with use_backend("triton"):
        torch.testing.assert_close(run(model), expected, rtol=1e-3, atol=1e-4)
    assert len(seen) == 2


def test_trace_and_unmerge(model: nn.Module) -> None:
    alt_fast.apply_patch(model, r=3, trace_source=True, unmerge=False)
    run(model)
    source, size = alt_fast.merge_trace(model)
    assert source.shape[1] - size.shape[1] == 9
    for image in range(2):
        assert torch.equal(source[image].bincount().float(), size[image])


def test_copies_and_pickles(model: nn.Module) -> None:
    alt_fast.apply_patch(model, r=3, trace_source=True)
    expected = run(model)
    assert torch.equal(run(copy.deepcopy(model)), expected)
    assert torch.equal(run(pickle.loads(pickle.dumps(model))), expected)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(run(torch.load(buffer, weights_only=False)), expected)


def test_trains(model: nn.Module) -> None:
    """Every parameter that the plain model trains gets a gradient; dropout and DropPath run."""
    model.train()
    run(model).square().sum().backward()
    plain = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    model.zero_grad()
    alt_fast.apply_patch(model, r=3)
    run(model).square().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} == plain


def test_compiles(shallow: nn.Module) -> None:
    torch.compiler.reset()
    alt_fast.apply_patch(shallow, r=3)
    expected = run(shallow)
    compiled = torch.compile(shallow, fullgraph=True, backend="eager")
    torch.testing.assert_close(run(compiled), expected, rtol=1e-4, atol=1e-4)


def test_exports(shallow: nn.Module) -> None:
    alt_fast.apply_patch(shallow, r=3)
    with torch.no_grad():
        expected = run(shallow)
        program = torch.export.export(shallow, (images(),))
        assert list(program.graph_module.modules()) == [program.graph_module]  # no graphs of contexts within
        torch.testing.assert_close(run(program.module()), expected, rtol=1e-4, atol=1e-4)


def block_by_hand(block: nn.Module, x: Tensor, size: Tensor, r: int, protected: int) -> tuple[Tensor, Tensor]:
    """One timm block on one image, token by token: attention, merge, MLP."""
    attn = block.attn
    qkv = attn.qkv(block.norm1(x)).view(len(x), 3, attn.num_heads, attn.head_dim)
    q, k, v = attn.q_norm(qkv[:, 0]), attn.k_norm(qkv[:, 1]), qkv[:, 2]
    scores = torch.einsum("nhd,mhd->hnm", q, k) * attn.scale + size.log()
    out = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v).flatten(1)
    x = x + block.ls1(attn.proj(out))
    slots = torch.tensor(match_by_loops(k.mean(1)[None], r, protected)[0])
    merged, sizes = [], []
    for slot in range(int(slots.max()) + 1):
        weights = size[slots == slot]
        merged.append((x[slots == slot] * weights[:, None]).sum(0) / weights.sum())
        sizes.append(weights.sum())
    x = torch.stack(merged)
    return x + block.ls2(block.mlp(block.norm2(x))), torch.stack(sizes)


@pytest.mark.parametrize("host", ["timm", "timm-dinov2", "timm-distilled", "timm-average"])
def test_equals_token_merging_by_hand(host: str) -> None:
    torch.manual_seed(3)
    model = HOSTS[host]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    protected = model.num_prefix_tokens
    alt_fast.apply_patch(model, r=3, unmerge=False)
    features = model.forward_features(images())
    alt_fast.remove_patch(model)
    x = model.norm_pre(model._pos_embed(model.patch_embed(images())))
    for image in range(2):
        tokens, size = x[image], torch.ones(x.shape[1])
        for block in model.blocks:
            tokens, size = block_by_hand(block, tokens, size, 3, protected)
        torch.testing.assert_close(features[image], model.norm(tokens), rtol=1e-3, atol=1e-4)


def test_unmerged_average_weighs_patches_equally() -> None:
    model = HOSTS["timm-average"]().eval()
    alt_fast.apply_patch(model, r=3, unmerge=False, trace_source=True)
    tokens = model.forward_features(images())
    _, size = alt_fast.merge_trace(model)
    expected = (tokens * size[..., None]).sum(1) / size.sum(1, keepdim=True)
    alt_fast.apply_patch(model, r=3)  # unmerges by itself: the head averages
    torch.testing.assert_close(model.pool(model.forward_features(images())), expected, rtol=1e-4, atol=1e-5)


def test_dense_features_keep_their_grid() -> None:
    model = alt_fast.apply_patch(timm_vit().eval(), r=3, unmerge=True, trace_source=True)
    features = model.forward_features(images())
    source, _ = alt_fast.merge_trace(model)
    assert features.shape == (2, 17, 32)
    same = source[:, :, None] == source[:, None, :]
    assert (features[:, :, None] == features[:, None, :]).all(-1)[same].all()


@pytest.mark.parametrize(("r", "tokens"), [([1, 0, 4], 12), ((2, -1.0), 11), (0.25, 8), (0, 17), (100, 3)])
def test_forms_of_r(r: Any, tokens: int) -> None:
    model = alt_fast.apply_patch(timm_vit().eval(), r=r, unmerge=False)
    assert model.forward_features(images()).shape[1] == tokens


def test_prop_attn_off() -> None:
    model = timm_vit().eval()
    proportional = run(alt_fast.apply_patch(model, r=3))
    plain = run(alt_fast.apply_patch(model, r=3, prop_attn=False))
    assert not torch.equal(proportional, plain)


def test_dynamic_image_size() -> None:
    model = alt_fast.apply_patch(timm_vit(dynamic_img_size=True).eval(), r=3, unmerge=False)
    assert model.forward_features(torch.randn(1, 3, 48, 40)).shape[1] == 31 - 9


def checkpoint_activations(model: Any) -> None:
    """By the host's own switch."""
    if hasattr(model, "gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable()
    else:
        model.set_grad_checkpointing()


@pytest.mark.parametrize("host", ["timm", "open_clip", "ViTModel", "Dinov2Model"])
def test_activation_checkpointing(host: str) -> None:
    torch.manual_seed(0)
    model = alt_fast.apply_patch(HOSTS[host]().train(), r=3)
    run(model).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    checkpoint_activations(model)
    run(model).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name])


@pytest.mark.parametrize("host", ["timm", "open_clip", "ViTModel", "Dinov2Model"])
def test_compiled_activation_checkpointing(host: str) -> None:
    """Where torch.compile sees checkpoints, merging must not begin anew behind each."""
    torch.manual_seed(0)
    torch.compiler.reset()
    model = alt_fast.apply_patch(HOSTS[host]().train(), r=3)
    expected = run(model)
    expected.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    checkpoint_activations(model)
    graphs: list[str] = []

    def look(module: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        graphs.append(module.print_readable(print_output=False))
        return aot_eager(module, inputs)

    found = run(torch.compile(model, backend=look))
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)
    assert any("tag_activation_checkpoint" in graph for graph in graphs)


def test_reentrant_checkpointing_is_refused() -> None:
    from torch.utils.checkpoint import checkpoint

    model = alt_fast.apply_patch(timm_vit().train(), r=3)
    x = model.blocks[0](torch.randn(1, 17, 32, requires_grad=True))
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        checkpoint(model.blocks[1], x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):  # of a first block, whose tokens would look detached
        checkpoint(model.blocks[0], torch.randn(1, 17, 32, requires_grad=True), use_reentrant=True)
    with torch.no_grad():
        run(model)


def test_checkpointing_sees_the_device_of_merged_tokens() -> None:
    """Whose random state it restores."""
    from torch.utils._pytree import tree_leaves

    model = alt_fast.apply_patch(timm_vit(), r=3)
    tokens = model.blocks[0](torch.randn(1, 17, 32))
    (leaf,) = tree_leaves([tokens])
    assert leaf is tokens.x


def test_attentions_that_do_more_than_their_weights_say_are_refused() -> None:
    model = alt_fast.apply_patch(timm_vit(), r=3)
    model.blocks[1].attn.forward = model.blocks[1].attn.forward
    with pytest.raises(ArgumentError, match="Attention has a forward of its own, which a merging block would"):
        run(model)
    pruned = torchvision_vit()
    prune.l1_unstructured(pruned.encoder.layers[1].self_attention, "in_proj_weight", 0.3)
    for refuses in (lambda model: alt_fast.apply_patch(model, r=3), run):  # by the time it would be compiled, too
        with pytest.raises(ArgumentError, match="MultiheadAttention has weights that a hook computes"):
            refuses(pruned)
        prune.remove(pruned.encoder.layers[1].self_attention, "in_proj_weight")
        run(alt_fast.apply_patch(pruned, r=3))
        prune.l1_unstructured(pruned.encoder.layers[1].self_attention, "in_proj_weight", 0.3)


class Doubled(nn.MultiheadAttention):
    """Does more than its weights say."""

    def forward(self, *args: Any, **options: Any) -> Any:
        out, weights = super().forward(*args, **options)
        return 2 * out, weights


@pytest.mark.parametrize("host", ["open_clip", "clip", "torchvision"])
def test_a_multihead_attention_that_was_replaced_is_refused(host: str) -> None:
    model = build(host)
    found = next(module for module in model.modules() if isinstance(module, nn.MultiheadAttention))
    found.__class__ = Doubled
    with pytest.raises(ArgumentError, match=r"attention must be an nn\.MultiheadAttention itself, got \S+\.Doubled"):
        alt_fast.apply_patch(model, r=3)
    found.__class__ = type("Named", (nn.MultiheadAttention,), {})  # as parametrizations do
    run(alt_fast.apply_patch(model, r=3))


def test_an_attention_of_timm_that_was_replaced_is_refused() -> None:
    """Whatever its class is called."""

    class Scaled(timm.layers.Attention):
        def forward(self, *args: Any, **options: Any) -> Tensor:
            return 2 * super().forward(*args, **options)

    model = timm_vit()
    model.blocks[1].attn = Scaled(32, num_heads=2, qkv_bias=True)
    with pytest.raises(ArgumentError, match=r"attention of VisionTransformer must be one of .*, got Scaled"):
        alt_fast.apply_patch(model, r=3)
    parallel = timm_vit(block_fn=timm.models.vision_transformer.ParallelThingsBlock)
    alt_fast.remove_patch(alt_fast.apply_patch(parallel, r=3))
    attention = parallel.blocks[1].attns[1].attn
    attention.forward = attention.forward
    with pytest.raises(ArgumentError, match="Attention has a forward of its own"):
        alt_fast.apply_patch(parallel, r=3)


def test_an_attention_of_transformers_that_was_replaced_is_refused() -> None:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.models.clip.modeling_clip import CLIPAttention

    class Mine(CLIPAttention):
        pass

    model: Any = hugging_face("CLIPVisionModel")
    layer = model.vision_model.encoder.layers[1] if hasattr(model, "vision_model") else model.encoder.layers[1]
    layer.self_attn.__class__ = Mine
    with pytest.raises(ArgumentError, match="attention of CLIPEncoderLayer must be transformers' own, got Mine"):
        alt_fast.apply_patch(model, r=3)
    layer.self_attn.__class__ = CLIPAttention
    nested = hugging_face("DeiTModel")
    inner = next(module for name, module in nested.named_modules() if name.endswith("attention"))
    inner.__class__ = type("Scaled", (type(inner),), {"__module__": "mine"})
    with pytest.raises(ArgumentError, match="attention of DeiTLayer must be transformers' own, got Scaled"):
        alt_fast.apply_patch(nested, r=3)
    AttentionInterface.register("mine", lambda *args, **options: sdpa_attention_forward(*args, **options))
    try:
        model.set_attn_implementation("mine")
        with pytest.raises(ArgumentError, match="attends by 'mine', which transformers does not bring"):
            alt_fast.apply_patch(model, r=3)
        model.set_attn_implementation("sdpa")
        run(alt_fast.apply_patch(model, r=3))
    finally:
        del AttentionInterface._global_mapping["mine"]


def test_an_attention_that_is_replaced_behind_the_patch_is_refused() -> None:
    """As before it: by a wrapper, by another class, and by another function."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    class Wrapper(nn.Module):
        def __init__(self, base: Any) -> None:
            super().__init__()
            self.base, self.qkv, self.proj, self.head_dim = base, base.qkv, base.proj, base.head_dim

        def forward(self, x: Tensor) -> Tensor:
            return 5 * self.base(x)

    class Scaled(timm.layers.Attention):
        def forward(self, *args: Any, **options: Any) -> Tensor:
            return 2 * super().forward(*args, **options)

    model: Any = alt_fast.apply_patch(timm_vit(), r=3)
    plain = model.blocks[1].attn
    model.blocks[1].attn = Wrapper(plain)
    with pytest.raises(
        ArgumentError,
        match=r"attn of a Block was timm\S+\.Attention and is \S+\.Wrapper, which a merging block would",
    ):
        run(model)
    model.blocks[1].attn = plain
    plain.__class__ = Scaled
    with pytest.raises(ArgumentError, match=r"attn of a Block was timm\S+\.Attention and is \S+\.Scaled"):
        run(model)
    plain.__class__ = type("Renamed", (timm.layers.Attention,), {})  # as parametrizations and FSDP make them
    run(model)
    clip: Any = alt_fast.apply_patch(open_clip_tower(), r=3)
    clip.transformer.resblocks[1].attn = nn.Identity()
    with pytest.raises(ArgumentError, match=r"was torch\S+\.MultiheadAttention and is torch\S+\.Identity"):
        run(clip)
    theirs: Any = alt_fast.apply_patch(hugging_face("ViTModel"), r=3)
    AttentionInterface.register("mine", lambda *args, **options: sdpa_attention_forward(*args, **options))
    try:
        theirs.set_attn_implementation("mine")
        with pytest.raises(ArgumentError, match="attends by 'mine', which transformers does not bring"):
            run(theirs)
        theirs.set_attn_implementation("sdpa")
        run(theirs)
    finally:
        del AttentionInterface._global_mapping["mine"]


@pytest.mark.parametrize(
    "kind", [timm.models.vision_transformer.Attention, timm.models.vision_transformer.Block], ids=["attention", "block"]
)
def test_a_forward_put_on_a_class_is_refused(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """As recorders of attention do: it would be passed over."""
    own, calls = kind.forward, []

    @functools.wraps(own)  # which makes it look like the library's
    def record(self: nn.Module, *args: Any, **options: Any) -> Any:
        calls.append(self)
        return own(self, *args, **options)

    model = timm_vit()
    monkeypatch.setattr(kind, "forward", record)
    with pytest.raises(ArgumentError, match=f"{kind.__name__} has a forward of tests.tome.test_patch, put in the pl"):
        alt_fast.apply_patch(model, r=3)
    model(torch.randn(1, 3, IMAGE, IMAGE))
    assert len(calls) == 3


def test_what_is_patched_is_no_tower_to_ask_about() -> None:
    model = timm_vit()
    alt_fast.apply_patch(model, r=3)
    with pytest.raises(ArgumentError, match="the blocks of this VisionTransformer merge already"):
        list(find_towers(model))
    alt_fast.apply_patch(model, r=2)


def test_a_patched_model_goes_by_its_own_name() -> None:
    """Files of transformers name classes, and so do settings of FSDP."""
    model = alt_fast.apply_patch(timm_vit(), r=3)
    assert [type(part).__name__ for part in [model, *model.get_submodule("blocks").children()]] == [
        "VisionTransformer",
        "Block",
        "Block",
        "Block",
    ]


def test_no_trace_is_kept_of_a_transform() -> None:
    """Its tensors do not outlive it."""
    model, x = alt_fast.apply_patch(timm_vit().eval(), r=3, trace_source=True), torch.randn(1, 3, IMAGE, IMAGE)
    torch.func.grad(lambda image: model(image).sum())(x)
    copy.deepcopy(model)
    with pytest.raises(ArgumentError, match="or last inside a transform"):
        alt_fast.merge_trace(model)
    model(x)
    assert alt_fast.merge_trace(model).size.shape == (1, 17 - 9)


def test_a_step_is_a_function() -> None:
    with pytest.raises(ArgumentError, match="step must be a function of Attended, as alt_fast.methods has, got 'evit'"):
        alt_fast.apply_patch(timm_vit(), step="evit")  # type: ignore[arg-type]


def test_torch_fx_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"cannot be traced by torch\.fx: ask for features by forward_interm"):
        torch.fx.symbolic_trace(alt_fast.apply_patch(timm_vit(dynamic_img_size=False), r=3))


def test_layers_that_only_share_a_name_are_none_of_transformers() -> None:
    """As those of code that a model brings along."""
    model = hugging_face("ViTModel")
    for module in list(model.modules()):
        if type(module).__name__ == "ViTLayer":
            module.__class__ = type("ViTLayer", (type(module),), {"__module__": "transformers_modules.mine"})
    with pytest.raises(ArgumentError, match="holds no vision transformer that apply_patch knows"):
        alt_fast.apply_patch(model, r=3)


def test_a_model_that_was_loaded_keeps_our_hooks_and_takes_others() -> None:
    """PyTorch numbers hooks from 0 in every process: the first of the new process took the place of ours."""
    model = pickle.loads(pickle.dumps(alt_fast.apply_patch(hugging_face("ViTModel"), r=3)))
    called: list[str] = []
    before = torch.utils.hooks.RemovableHandle.next_id
    try:
        torch.utils.hooks.RemovableHandle.next_id = 0  # a fresh process
        model.register_forward_pre_hook(lambda module, inputs: called.append("before"))
        model.register_forward_hook(lambda module, inputs, output: called.append("behind"))
    finally:
        torch.utils.hooks.RemovableHandle.next_id = before
    states = model(images(), output_hidden_states=True).hidden_states
    assert called == ["before", "behind"]
    assert {type(state) for state in states} == {Tensor}
    with pytest.raises(ArgumentError, match="cannot honour output_attentions"):
        model(images(), output_attentions=True)
    assert len(alt_fast.remove_patch(model)._forward_hooks) == 1


def test_a_tower_that_another_class_was_put_on_since_is_patched_and_unpatched() -> None:
    """Around our class of towers, which does nothing where no tokens merge; not around that of blocks."""
    model: Any = alt_fast.apply_patch(timm_vit(), r=3)
    nn.utils.parametrize.register_parametrization(model, "pos_embed", nn.Identity())
    parametrized = type(model)
    for change in (partial(alt_fast.apply_patch, r=2), alt_fast.remove_patch):
        assert type(change(model)) is parametrized
        assert run(model).shape == (2, 5)
    assert type(model.blocks[0]) is timm.models.vision_transformer.Block
    nn.utils.parametrize.remove_parametrizations(model, "pos_embed")


def test_a_tower_whose_class_cannot_be_made_stays_as_it_was() -> None:
    class Named(timm.models.VisionTransformer):
        def __init_subclass__(cls, name: str, **options: Any) -> None:
            super().__init_subclass__(**options)

    model = Named(img_size=IMAGE, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)
    with pytest.raises(TypeError, match="name"):
        alt_fast.apply_patch(model, r=3)
    assert type(model) is Named
    assert type(model.blocks[0]) is timm.models.vision_transformer.Block
    assert not model._forward_hooks


def test_a_trace_of_a_model_that_was_cut_says_so() -> None:
    two = alt_fast.apply_patch(nn.ModuleList([timm_vit(), timm_vit()]), r=3, trace_source=True)
    two[0].blocks = two[0].blocks[:2]
    run(two[1])
    with pytest.raises(ArgumentError, match="the model lost its last block since it was patched"):
        alt_fast.merge_trace(two)
    model = alt_fast.apply_patch(timm_vit(), r=3, trace_source=True)
    model.blocks = model.blocks[:2]
    run(model)
    with pytest.raises(ArgumentError, match="the model lost its last block since it was patched"):
        alt_fast.merge_trace(model)
    with pytest.raises(ArgumentError, match=r"keeps no trace: apply_patch\(model, trace_source=True\)"):
        alt_fast.merge_trace(alt_fast.apply_patch(model, r=3))
    with pytest.raises(ArgumentError, match="has not run since it was patched"):
        alt_fast.merge_trace(alt_fast.apply_patch(model, r=3, trace_source=True))


def test_fractions_of_tokens_compile_one_after_another() -> None:
    """Dynamo makes a symbol of the second one."""
    torch.compiler.reset()
    model = timm_vit(depth=2).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for r in (0.2, 0.3, 0.45):
        alt_fast.apply_patch(model, r=r)
        torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-4, atol=1e-5)


def test_sizes_are_fp32_whatever_the_default_is() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        run(alt_fast.apply_patch(timm_vit(), r=3), images().bfloat16())
    finally:
        torch.set_default_dtype(before)


def test_a_block_with_a_forward_of_its_own_is_refused() -> None:
    model = timm_vit()
    model.blocks[1].forward = model.blocks[1].forward
    with pytest.raises(ArgumentError, match="a Block has a forward of its own"):
        alt_fast.apply_patch(model, r=3)
    assert type(model.blocks[0]) is timm.models.vision_transformer.Block


def test_a_forward_that_was_put_on_since_is_not_left_behind() -> None:
    """It would go on calling the merging block's."""
    model = alt_fast.apply_patch(timm_vit(), r=3)
    block = model.blocks[1]
    block.forward = partial(block.forward)
    expected = run(model)
    with pytest.raises(ArgumentError, match="a patched Block has a forward of its own"):
        alt_fast.remove_patch(model)
    assert torch.equal(run(model), expected)
    del block.forward
    assert type(alt_fast.remove_patch(model).blocks[1]) is timm.models.vision_transformer.Block


def test_hooks_that_would_be_called_for_nothing_are_refused() -> None:
    """Merged tokens are no tensor that has a gradient; comparisons are of their elements all the same."""
    model = alt_fast.apply_patch(timm_vit(), r=3)
    asked: list[Any] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        assert torch.equal(output == output.dense(), torch.ones_like(output.dense(), dtype=torch.bool))
        assert not (output != output).any()
        for name in ("retain_grad", "register_hook"):
            with pytest.raises(ArgumentError, match=f"no {name}.*: hook a norm1 instead"):
                getattr(output, name)
            asked.append(name)

    handle = model.blocks[0].register_forward_hook(hook)
    run(model)
    assert len(asked) == 2
    handle.remove()
    for register in ("register_full_backward_hook", "register_full_backward_pre_hook"):
        handle = getattr(model.blocks[0], register)(lambda *_: None)
        with pytest.raises(ArgumentError, match="cannot call full backward hooks: hook a norm1"):
            model(images().requires_grad_())
        handle.remove()
    run(model)


def test_an_eva_whose_bias_is_added_apart_calls_its_projection() -> None:
    """As timm does, so that layers which are more than their weight are what they are."""
    model = timm.models.eva.Eva(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5).eval()
    for block in model.blocks:
        block.attn.qkv_bias_separate = True
        nn.init.normal_(block.attn.q_bias)
        block.attn.qkv.register_forward_hook(lambda module, args, output: 2 * output)
    expected = run(model)
    torch.testing.assert_close(run(alt_fast.apply_patch(model, r=0)), expected)


def test_masks_of_flex_attention_are_named() -> None:
    import transformers

    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    model = transformers.ViTModel(config).eval()
    model.set_attn_implementation("flex_attention")
    alt_fast.apply_patch(model, r=0)
    with pytest.raises(ArgumentError, match=r"a mask of flex attention: call set_attn_implementation\('sdpa'\)"):
        model(torch.randn(1, 3, 224, 224))
    model.set_attn_implementation("sdpa")
    model(torch.randn(1, 3, 224, 224))


def test_a_block_that_stands_twice_is_refused() -> None:
    model = timm_vit()
    model.blocks = nn.Sequential(*[model.blocks[0]] * 3)
    with pytest.raises(ArgumentError, match="the same block twice"):
        alt_fast.apply_patch(model, r=3)
    assert type(model.blocks[0]) is timm.models.vision_transformer.Block


def test_a_class_that_was_put_on_since_is_not_lost() -> None:
    model = alt_fast.apply_patch(timm_vit(), r=3)
    block = model.blocks[1]
    block.__class__ = wrapped = type("FSDPBlock", (type(block),), {})
    for change in (alt_fast.remove_patch, partial(alt_fast.apply_patch, r=2)):
        with pytest.raises(ArgumentError, match="FSDPBlock was made of a patched module"):
            change(model)
        assert type(block) is wrapped
        assert [each.tome.r for each in model.blocks] == [3, 3, 3]


def test_dropout_and_drop_path() -> None:
    model = timm_vit(attn_drop_rate=0.3, proj_drop_rate=0.2, drop_path_rate=0.5)
    alt_fast.apply_patch(model, r=3)
    model.train()
    assert not torch.equal(run(model), run(model))
    model.eval()
    assert torch.equal(run(model), run(model))


def test_hidden_states_of_hugging_face() -> None:
    model = alt_fast.apply_patch(HOSTS["CLIPVisionModel"]().eval(), r=3, unmerge=False)
    states = model(images(), output_hidden_states=True).hidden_states
    assert [state.shape[1] for state in states] == [17, 14, 11, 8]


def test_whole_clip_models_keep_their_text_tower() -> None:
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**small, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 49},
            vision_config={**small, "image_size": IMAGE, "patch_size": 8},
        )
    ).eval()
    text = [type(module) for module in model.text_model.modules()]
    alt_fast.apply_patch(model, r=3, trace_source=True)
    assert [type(module) for module in model.text_model.modules()] == text
    model(input_ids=torch.tensor([[0, 3, 49]]), pixel_values=images())
    assert alt_fast.merge_trace(model).size.shape == (2, 11)


def test_ddp_wrapping(tmp_path: Any) -> None:
    model = alt_fast.apply_patch(timm_vit(), r=3)
    expected = run(model)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        out = run(wrapped)
        out.sum().backward()
        del wrapped  # behind its group it may wait for ever (alt_fast/distributed.py)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(out, expected)


def test_a_share_is_exported_for_any_size_of_image() -> None:
    model = alt_fast.apply_patch(timm_vit(dynamic_img_size=True, depth=2).eval(), r=0.25)
    axes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (torch.randn(2, 3, 48, 64),), dynamic_shapes=[axes], strict=False).module()
    for shape in ((2, 3, 48, 64), (1, 3, 32, 32)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), model(x))


def test_hooks_from_before_the_patch_see_grids_of_hidden_states() -> None:
    model, seen = HOSTS["ViTModel"]().eval(), []
    model.register_forward_hook(lambda module, args, out: seen.extend(out.hidden_states))
    alt_fast.apply_patch(model, r=3)
    model(images(), output_hidden_states=True)
    assert {type(x) for x in seen} == {Tensor}
    assert len({x.shape for x in seen}) == 1


@pytest.mark.parametrize("host", ["timm", "timm-dinov2", "timm-average", "open_clip", "torchvision", "ViTModel"])
def test_onnx_export_runs_in_onnxruntime(host: str, tmp_path: Any) -> None:
    import onnxruntime as runtime

    model = alt_fast.apply_patch(HOSTS[host](depth=2).eval(), r=3)
    path = tmp_path / "model.onnx"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (images(),), path, dynamo=True, verbose=False)
        expected = run(model)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: images().numpy()})
    if host == "ViTModel":  # all patches, and the pooled class token: the order of `run`
        found = [np.concatenate([found[1][:, None], found[0]], axis=1)]
    torch.testing.assert_close(torch.from_numpy(found[0]), expected, rtol=1e-4, atol=1e-4)


class OwnBlock(timm.models.vision_transformer.Block):
    """Somebody's: who knows what it does."""


class OwnAttention(timm.layers.Attention):
    """Somebody's."""


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "windows": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1)),
        "windows|relative",
    ),
    "relative positions": (lambda: timm.create_model("vit_relpos_small_patch16_224", depth=1), "relative"),
    "other blocks": (lambda: timm_vit(block_fn=OwnBlock), "must be one of timm's Block"),
    "other attention": (lambda: timm_vit(attn_layer=OwnAttention), "must be one of timm's Attention"),
    "custom open_clip blocks": (lambda: open_clip_tower(qk_norm=True), "must be ResidualAttentionBlock"),
    "no transformer": (lambda: nn.Linear(2, 2), "knows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_merging_cannot_honour(name: str) -> None:
    build, message = REFUSED[name]
    model = build()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        alt_fast.apply_patch(model, r=2)
    assert [type(module) for module in model.modules()] == classes


def test_masks_are_refused_unless_they_mask_nothing() -> None:
    model = alt_fast.apply_patch(timm_vit().eval(), r=2)
    mask = torch.ones(17, 17, dtype=torch.bool)
    assert torch.equal(model.forward_features(images(), attn_mask=mask), model.forward_features(images()))
    with pytest.raises(ValueError, match="attn_mask"):
        model.forward_features(images(), attn_mask=mask.tril())


def test_masks_are_looked_at_by_the_gpu_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host may not wait for it then."""

    class OnGpu(Tensor):
        is_cuda = True

    asked: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch, "_assert_async", lambda holds, message: asked.append(bool(holds)))
    for mask in (torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool)):
        refuse_options({"attention_mask": mask.as_subclass(OnGpu)}, ())
    assert asked == [True, False]


def test_bad_input() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        alt_fast.apply_patch("vit")
    for r, error in ((-1, ValueError), ([1, 2], ValueError), (0.7, ValueError), ("8", TypeError), (None, TypeError)):
        model = timm_vit()
        with pytest.raises(error, match="r "):
            alt_fast.apply_patch(model, r=r)
        assert type(model.blocks[0]) is timm.models.vision_transformer.Block
    with pytest.raises(ValueError, match="keeps no trace"):
        alt_fast.merge_trace(alt_fast.apply_patch(timm_vit()))
    with pytest.raises(ValueError, match="has not run"):
        alt_fast.merge_trace(alt_fast.apply_patch(timm_vit(), trace_source=True))


def test_a_patch_that_fails_changes_nothing() -> None:
    """All or nothing, for a model that was patched before and one that was not."""
    model = timm_vit().eval()
    plain = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match="r must be >= 0 in every layer"):
        alt_fast.apply_patch(model, r=-1)
    assert [type(module) for module in model.modules()] == plain
    alt_fast.apply_patch(model, r=3, trace_source=True)
    expected, trace = run(model), alt_fast.merge_trace(model)
    patched = [type(module) for module in model.modules()]
    for r in (-1, (3, 7.0), [1, 2], "8"):
        with pytest.raises((ValueError, TypeError)):
            alt_fast.apply_patch(model, r=r)  # type: ignore[arg-type]
        assert [type(module) for module in model.modules()] == patched
        assert alt_fast.merge_trace(model).source is trace.source
    assert torch.equal(run(model), expected)
    both = nn.ModuleList([model, timm_vit(class_token=False, global_pool="avg").eval()])
    both[1].blocks[1] = nn.Identity()  # type: ignore[assignment, union-attr, operator, index]
    with pytest.raises(ValueError, match="block of VisionTransformer must be one of timm's"):
        alt_fast.apply_patch(both, r=2)
    assert torch.equal(run(model), expected)


@pytest.mark.parametrize(
    "r",
    [np.int64(3), torch.tensor(3), np.array([3, 3, 3]).tolist(), [np.int32(3)] * 3, (np.int64(3), 0.0)],
    ids=["numpy", "torch", "list", "list of numpy", "with inflect"],
)
def test_whatever_is_an_int_is_one(r: Any) -> None:
    model = timm_vit().eval()
    expected = run(alt_fast.apply_patch(model, r=3))
    assert torch.equal(run(alt_fast.apply_patch(model, r=r)), expected)


def test_what_is_no_number_of_tokens() -> None:
    assert merge_schedule(np.float32(0.25), 2) == [0.25, 0.25]
    for r in (True, "8", None, torch.tensor(1.5), [8.5] * 3, object()):
        with pytest.raises((TypeError, ValueError)):
            merge_schedule(r, 3)  # type: ignore[arg-type]
