"""Which vision transformers `apply_patch` takes: every block structure of timm, every vision tower of transformers.

    python -m benchmarks.coverage [--only WORD] [--compile] [--markdown FILE]

Models are built small, with random weights, and either refused with a reason or checked: nothing changes at r = 0;
merging tokens that are equal changes nothing either; merging others changes the output, not its shape; taking the patch
off restores the model bit for bit; with --compile, the compiled model (one graph) returns the same.
"""

import argparse
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import alt_fast
from alt_fast.errors import ArgumentError
from alt_fast.tome.block import MergingBlock

GRID = 4
"""Patches along a side of the images of small models, where these can be had."""

SHARE = 0.4
"""Of the tokens merge in every layer."""

TIMM_FAMILIES = (
    *("beit", "cait", "convit", "crossvit", "deepseek_vit", "deit", "eva", "gemma4_vit", "hiera", "hieradet_sam2"),
    *("naflexvit", "pit", "qwen3_vit", "swin_transformer", "swin_transformer_v2", "tnt", "vision_transformer"),
    *("vision_transformer_hybrid", "vision_transformer_relpos", "vision_transformer_sam", "vitamin", "volo", "xcit"),
)
"""Modules of timm whose models attend between patches."""


@dataclass(frozen=True)
class Structure:
    """One kind of tower. models: how many published ones have it. build: a small one with random weights."""

    library: str
    name: str
    models: int
    build: Callable[[], nn.Module]


@dataclass(frozen=True)
class Verdict:
    """What became of a structure. result: "right", "refused" or "wrong". why: of a refusal or a fault."""

    structure: Structure
    result: str
    why: str = ""


def timm_structures() -> list[Structure]:
    """Every structure of timm's vision transformers: class of the model, parts of its blocks, prefix, pooling, rope."""
    import timm

    count: Counter[Any] = Counter()
    first: dict[Any, str] = {}
    for name in timm.list_models():
        if timm.models.model_entrypoint(name).__module__.rpartition(".")[2] in TIMM_FAMILIES:
            with torch.device("meta"):
                model = small_timm(name)
            key = _structure(model)
            count[key] += 1
            first.setdefault(key, name)
    return [Structure("timm", first[key], number, partial(small_timm, first[key])) for key, number in count.items()]


def _structure(model: Any) -> tuple[object, ...]:
    blocks = getattr(model, "blocks", None)
    block = blocks[0] if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) else model
    parts = tuple((name, type(module).__name__) for name, module in block.named_modules())
    of_model = ("rope", "attn_pool", "norm_pre", "reg_token", "cls_token")
    return (
        type(model).__name__,
        parts,
        getattr(model, "num_prefix_tokens", None),
        bool(getattr(model, "global_pool", "")) and model.global_pool,
        *(type(getattr(model, part, None)).__name__ for part in of_model),
        bool(getattr(getattr(block, "attn", None), "rotate_half", False)),
    )


def small_timm(name: str) -> nn.Module:
    """A model of timm with two narrow blocks, as far as its constructor has words for that."""
    import timm

    shrunk: list[dict[str, Any]] = [
        {"depth": 2, "embed_dim": 64, "num_heads": 2},
        {"depth": 2, "embed_dim": 64, "num_heads": 2, "num_kv_heads": 1},
        {"depth": 2},
        {},
    ]
    for options in [
        {**options, **small} for small in ({"img_size": GRID * _patch_size(name)}, {}) for options in shrunk
    ]:
        try:
            return timm.create_model(name, num_classes=5, **options)
        except (TypeError, AssertionError, ValueError, RuntimeError):
            continue
    return timm.create_model(name)


def _patch_size(name: str) -> int:
    found = re.search(r"patch(\d+)", name)
    return int(found[1]) if found else 16


TRANSFORMERS = {
    "AIMv2": "Aimv2VisionModel",
    "BEiT": "BeitModel",
    "CLIP": "CLIPVisionModel",
    "Data2Vec": "Data2VecVisionModel",
    "DeiT": "DeiTModel",
    "DINOv2": "Dinov2Model",
    "DINOv2 with registers": "Dinov2WithRegistersModel",
    "DINOv3": "DINOv3ViTModel",
    "DPT's backbone (DINOv2)": "Dinov2Backbone",
    "DINOv3's backbone": "DINOv3ViTBackbone",
    "Hiera": "HieraModel",
    "I-JEPA": "IJepaModel",
    "InternVL": "InternVLVisionModel",
    "MLCD": "MLCDVisionModel",
    "MSN": "ViTMSNModel",
    "Pixtral": "PixtralVisionModel",
    "SAM": "SamVisionModel",
    "SigLIP": "SiglipVisionModel",
    "SigLIP 2": "Siglip2VisionModel",
    "Swin": "SwinModel",
    "TimeSformer": "TimesformerModel",
    "V-JEPA 2": "VJEPA2Model",
    "VideoMAE": "VideoMAEModel",
    "ViT": "ViTModel",
    "ViT-MAE": "ViTMAEModel",
    "ViViT": "VivitModel",
    "X-CLIP": "XCLIPVisionModel",
    "YOLOS": "YolosModel",
}
"""Vision towers of transformers, by the names that people give them."""


def transformers_structures() -> list[Structure]:
    """Every tower of `TRANSFORMERS`."""
    return [Structure("transformers", name, 1, partial(small_transformer, cls)) for name, cls in TRANSFORMERS.items()]


def small_transformer(name: str) -> nn.Module:
    """A tower of transformers with two narrow layers."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    cls = getattr(transformers, name)
    config = cls.config_class
    image = 4 * 16
    options = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "image_size": image,
        "crop_size": image,
        "patch_size": 16,
        "frames_per_clip": 4,
        "num_frames": 4,
        "num_patches": GRID * GRID,
        "tubelet_size": [2, 16, 16] if "Vivit" in name else 2,
        "mlp_ratio": 2.0,
        "pred_num_hidden_layers": 1,
        "pred_hidden_size": 48,
        "mask_ratio": 0.25,
        "use_absolute_position_embeddings": True,
        "projection_dim": 32,
        "num_channels": 3,
        "head_dim": 16,
    }
    known = inspect.signature(config).parameters
    options = {key: value for key, value in options.items() if key in known}
    sides = {"image_size": [image, image]}
    for other in ({}, {"mlp_ratio": 2}, sides, sides | {"patch_size": [16, 16]}):  # configurations check their types
        try:
            return cls(config(**options | {key: value for key, value in other.items() if key in known}))
        except StrictDataclassError:
            continue
    raise ValueError(f"{name} takes none of the configurations tried")


def inputs(model: nn.Module) -> Tensor:
    """Images or a clip for a small model, two of each."""
    config = getattr(model, "config", None)
    generator = torch.Generator().manual_seed(1)
    if config is None:
        size = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))
        embed = getattr(model, "patch_embed", None)
        shape = (2, 3, *(getattr(embed, "img_size", None) or size[1:]))
    elif type(model).__name__.startswith(("VideoMAE", "Vivit", "VJEPA2", "Timesformer")):
        shape = (2, 4, 3, 64, 64)
    elif type(model).__name__.startswith("XCLIP"):
        shape = (2 * 4, 3, 64, 64)
    elif type(model).__name__.startswith("Pixtral"):
        shape = (1, 3, 64, 64)
    else:
        shape = (2, 3, 64, 64)
    return torch.randn(shape, generator=generator)


def run_compiled(model: nn.Module, x: Tensor) -> Tensor | None:
    """As `run`, compiled as one graph; None for a model that does not compile so."""
    torch.compiler.reset()
    try:
        return run(model, x, torch.compile(model, fullgraph=True, backend="aot_eager"))
    except torch._dynamo.exc.TorchDynamoException:
        return None


def run(model: nn.Module, x: Tensor, call: Callable[..., Any] | None = None) -> Tensor:
    """All that a model returns about its tokens, side by side. call: the model, if it is not to be called itself."""
    call = model if call is None else call
    torch.manual_seed(0)  # ViT-MAE drops patches
    if type(model).__name__.startswith("Siglip2"):
        patches = x.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        shapes = torch.tensor([[GRID, GRID]] * len(x))
        out = call(patches, pixel_attention_mask=torch.ones(patches.shape[:2]), spatial_shapes=shapes)
    elif type(model).__name__.startswith("VJEPA2"):
        out = call(x, skip_predictor=True)
    else:
        out = call(x)
    if isinstance(out, Tensor):
        return out.flatten(1)
    if isinstance(out, tuple | list):
        return torch.cat([part.flatten(1) for part in out], 1)
    if "feature_maps" in out:
        return torch.cat([part.flatten(1) for part in out.feature_maps], 1)
    return out.last_hidden_state.flatten(1)


def check(structure: Structure, compiled: bool = False) -> Verdict:
    """Say whether a structure is taken and right, refused, or wrong."""
    with torch.device("meta"):
        model = structure.build()
    classes = [type(module) for module in model.modules()]
    try:
        alt_fast.apply_patch(model, r=0)
    except ArgumentError as error:
        same = [type(module) for module in model.modules()] == classes
        return Verdict(structure, "refused" if same else "wrong", str(error))
    torch.manual_seed(0)
    model = structure.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        fault = next(_faults(model, compiled), None)
    return Verdict(structure, "right") if fault is None else Verdict(structure, "wrong", fault)


def _faults(model: nn.Module, compiled: bool) -> Iterator[str]:
    classes, keys = [type(module) for module in model.modules()], list(model.state_dict())
    x = inputs(model)
    plain = run(model, x)
    alt_fast.apply_patch(model, r=0)
    if not torch.allclose(run(model, x), plain, rtol=1e-4, atol=1e-4):
        yield "r = 0 changes the output"
    alt_fast.apply_patch(model, r=SHARE)
    merged = run(model, x)
    if merged.shape != plain.shape or not merged.isfinite().all():
        yield f"merging returns {tuple(merged.shape)}, not {tuple(plain.shape)}"
    elif torch.allclose(merged, plain, rtol=1e-5, atol=1e-6):
        yield "merging changes nothing"
    if list(model.state_dict()) != keys:
        yield "state_dict has other keys"
    if compiled:
        out = run_compiled(model, x)
        if out is not None and not torch.allclose(out, merged, rtol=1e-3, atol=1e-3):
            yield "compiled it returns something else"
    alt_fast.remove_patch(model)
    if compiled and out is None and run_compiled(model, x) is not None:
        yield "it does not compile, while the plain model does"
    if [type(module) for module in model.modules()] != classes or not torch.equal(run(model, x), plain):
        yield "it is not restored"
    yield from _equal_tokens(model, x)


def _equal_tokens(model: nn.Module, x: Tensor) -> Iterator[str]:
    """Patches that are equal, and nowhere: what merges them in proportion to their number changes nothing."""
    alt_fast.apply_patch(model, r=0)
    hooks = [
        block.register_forward_pre_hook(_same_everywhere, with_kwargs=True)
        for block in model.modules()
        if isinstance(block, MergingBlock)
    ]
    plain = run(model, x)
    alt_fast.apply_patch(model, r=SHARE)
    if not torch.allclose(run(model, x), plain, rtol=1e-3, atol=1e-4):
        yield "merging equal tokens changes the output"
    for hook in hooks:
        hook.remove()


def _same_everywhere(block: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Put the last patch in the place of every other, in the first block, and make rotary tables turn nothing."""
    hidden, *others = args
    if isinstance(hidden, Tensor):
        prefix, patches = hidden[:, : block.tome.protected], hidden[:, block.tome.protected :]
        hidden = torch.cat((prefix, patches[:, -1:].expand_as(patches)), 1)

    def still(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return torch.ones_like(value[0]), torch.zeros_like(value[1])
        sin, cos = value.chunk(2, -1)
        return torch.cat((torch.zeros_like(sin), torch.ones_like(cos)), -1)

    turned = {name: still(options[name]) for name in ("rope", "position_embeddings") if options.get(name) is not None}
    others = [still(arg) if isinstance(arg, tuple | list) else arg for arg in others]
    return (hidden, *others), {**options, **turned}


def page(verdicts: list[Verdict]) -> str:
    """The page docs/hosts.md: what is taken, and what is refused and why."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("timm", "transformers", "torch"))
    lines = [
        "# Vision transformers that apply_patch takes",
        "",
        "`python -m benchmarks.coverage --compile --markdown docs/hosts.md` wrote this page, with " + versions + ".",
        "It builds every block structure of timm's vision transformers and the vision towers of transformers small,",
        "with random weights. Those taken are right: nothing changes at r = 0, merging equal tokens changes nothing,",
        "what merges changes the output but not its shape, the model compiled as one graph returns the same (where the",
        "plain one compiles so), and taking the patch off restores it bit for bit. A structure stands for all models",
        "that differ in size only, and has the name of one of them.",
        "",
        *(summary(verdicts, library) for library in ("timm", "transformers")),
        "",
    ]
    lines += ["| library | structure | models | verdict |", "|---|---|--:|---|"]
    for verdict in sorted(verdicts, key=lambda v: (v.structure.library, v.result != "right", v.structure.name)):
        said = "taken" if verdict.result == "right" else f"{verdict.result}: {verdict.why.partition('; write')[0]}"
        lines.append(
            f"| {verdict.structure.library} | {verdict.structure.name} | {verdict.structure.models} | {said} |"
        )
    return "\n".join(lines) + "\n"


def summary(verdicts: list[Verdict], library: str) -> str:
    """How many structures of a library are taken, in a line."""
    results = Counter(v.result for v in verdicts if v.structure.library == library)
    return f"- {library}: {results['right']} taken, {results['refused']} refused, {results['wrong']} wrong"


def main(argv: list[str] | None = None) -> int:
    """Check all structures, print what became of them, and return how many are wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="structures whose name or library contains it")
    parser.add_argument("--compile", action="store_true", help="compile every model too (minutes)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page of hosts there")
    args = parser.parse_args(argv)
    verdicts = []
    for structure in [*transformers_structures(), *timm_structures()]:
        if args.only in f"{structure.library} {structure.name}":
            verdicts.append(check(structure, args.compile))
            found = verdicts[-1]
            print(f"{found.result:8} {structure.library:13} {structure.name} {found.why}", flush=True)
    for library in ("timm", "transformers"):
        print(summary(verdicts, library))
    if args.markdown is not None:
        args.markdown.write_text(page(verdicts))
    return sum(verdict.result == "wrong" for verdict in verdicts)


if __name__ == "__main__":
    sys.exit(main())
