"""Token merging for other people's vision transformers: apply_patch, remove_patch.

Only instances change. Their blocks get another class, one that knows token sizes and merges; a tower with methods that
return what blocks gave gets one in which these return tensors. No parameter is touched, added or renamed, so
state_dict, deepcopy, pickle and optimizers work as before.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, NamedTuple, TypeVar, cast

from torch import Tensor, nn

from alt_fast.errors import ArgumentError
from alt_fast.tome.block import (
    BlockSettings,
    MergingBlock,
    Patched,
    Tapped,
    check_reached,
    merging_class,
    refuse_outputs,
    tapped_class,
)
from alt_fast.tome.destinations import Destinations, check_destinations
from alt_fast.tome.layout import Layout, Tower
from alt_fast.tome.rules import RotaryRule, check_rule
from alt_fast.tome.schedule import Reduction, merge_schedule
from alt_fast.tome.tokens import Step, dense_outputs, merge_step

Model = TypeVar("Model", bound=nn.Module)
FindTower = Callable[[nn.Module], Tower | None]

HOSTS = {
    "timm": ("timm", "VisionTransformer with all its blocks, DeiT, Eva (EVA-02, DINOv3, PE, RoPE-ViT), NaFlexVit"),
    "open_clip": ("open_clip", "the vision tower, alone or in the whole CLIP, timm's too"),
    "transformers": (
        "transformers",
        "AIMv2, AltCLIP, BLIP, BLIP-2, Chinese-CLIP, CLIP, CLIPSeg, DeiT, DINOv2, DINOv3, DPT, EoMT, GIT, I-JEPA, "
        "InstructBLIP, InternVL, MetaCLIP 2, MLCD, MSN, OWL-ViT, OWLv2, Pixio, Pixtral, Sapiens 2, SigLIP, SigLIP 2, "
        "TIPSv2, V-JEPA 2, VideoMAE, ViT, ViT-MAE, ViTPose, ViViT, X-CLIP, and what is composed of them "
        "(transformers 5)",
    ),
    "torchvision": ("torchvision", "VisionTransformer"),
    "clip": ("openai_clip", "the vision tower of OpenAI's CLIP, alone or in the whole"),
}
"""Libraries with an adapter, by the top module of their classes: the adapter in `tome.hosts`, and what it takes."""


HOOK = -1
"""Our hooks' number. PyTorch counts from 0 in every process, so that in a model that was loaded it would reach ours."""


class MergeTrace(NamedTuple):
    """Where the tokens of the last forward pass went.

    source: [B, N] int32, the final token of each of the N first tokens (prefix tokens, then patches by row).
    size: [B, N'] fp32, patches in each final token.
    """

    source: Tensor
    size: Tensor


def apply_patch(
    model: Model,
    r: Reduction = 8,
    prop_attn: bool = True,
    trace_source: bool = False,
    unmerge: bool = True,
    rotary: RotaryRule = "mean",
    find_tower: FindTower | None = None,
    destinations: Destinations = 2,
    step: Step = merge_step,
) -> Model:
    """Make every vision tower in `model` merge tokens; returns the model, patched in place.

    model: of timm, open_clip, transformers, torchvision or OpenAI's clip (`HOSTS` says which, docs/hosts.md in full);
        or any module that contains one. Text towers stay as they are.
    r: tokens to remove per layer: an int, one int per layer, (r, inflect), or a float, the fraction of every layer's
        tokens. A layer removes at most half of them, unless destinations say otherwise.
    prop_attn: a token counts in attention as often as the patches it stands for; off for models trained with merging
        and without it.
    trace_source: keep where tokens went, for `merge_trace`.
    unmerge: give every patch its token's features wherever the model reads patches: after the last block, so that
        pooled heads weigh them equally, and between blocks (`forward_intermediates`, `output_hidden_states`,
        backbones), where dense features keep their grid. False: the merged tokens, which cannot be had as a grid.
    rotary: which position a merged token has in a tower with rotary positions (`tome.rotary`).
    find_tower: for models of no library above: says of a module which `Tower` it is, or None.
    destinations: which tokens others merge into, so that all others can merge away in one layer. An int k: in every
        layer every k-th of the tokens that are there, in their order, which after a merge is that of `match`'s slots.
        `OnePerCell`: one patch of every cell of a grid, in the first layer that merges, whose tokens are the prefix and
        the whole grid (an error of the forward pass, where they are not); later there is no grid, and every other
        token is a destination.
    step: what removes tokens between attention and MLP, another method than ToMe's (`alt_fast.methods` has some).

    A model patched before gets the new settings. Raises ArgumentError naming what merging cannot honour (windows,
    relative position bias, other blocks or attentions), TypeError when model is no module; then the model is as it was
    before.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    before = [(block, block.tome, block.last_trace) for block in model.modules() if isinstance(block, MergingBlock)]
    ours = [type(block) for block, _, _ in before]
    hooked = [module for module in model.modules() if HOOK in module._forward_hooks]
    taps = [(module, type(module)) for module in model.modules() if isinstance(module, Tapped)]
    _take_off(model, (MergingBlock, Tapped))
    try:
        check_rule(rotary)
        destinations = check_destinations(destinations)
        if not callable(step):
            raise ArgumentError(f"step must be a function of Attended, as alt_fast.methods has, got {step!r}")
        towers = list(find_towers(model, find_tower))
        if not towers:
            raise ArgumentError(_nothing_found(model, find_tower))
        for tower in towers:
            for block in tower.blocks:
                layout = _layout_of(tower, block)
                layout.check(block)
                check_reached(block, layout)
            if len(set(tower.blocks)) < len(tower.blocks):
                raise ArgumentError("a tower has the same block twice, and merging differs from layer to layer")
        classes = [[_class_of(tower, block) for block in tower.blocks] for tower in towers]
        schedules = [merge_schedule(r, len(tower.blocks), destinations) for tower in towers]
        holders = [each for each in model.modules() if _holds_one_of(towers, each)]
        tapped_classes = [tapped_class(type(module)) for module in holders]  # type: ignore[arg-type]
    except BaseException:  # the model is left as it was
        for cls, (patched, settings, trace) in zip(ours, before, strict=True):
            cls.patch(patched, settings)
            patched.last_trace = trace
        for tower_module, own_class in taps:
            tower_module.__class__ = own_class
        _add_hooks(hooked)
        raise
    for tower, schedule, own in zip(towers, schedules, classes, strict=True):
        for i, (block, r_block, cls) in enumerate(zip(tower.blocks, schedule, own, strict=True)):
            settings = BlockSettings(
                r=r_block,
                protected=tower.protected,
                prop_attn=prop_attn,
                trace=trace_source,
                unmerge=unmerge,
                layer=i,
                num_layers=len(schedule),
                rotary=rotary,
                destinations=destinations,
                step=step,
                class_token=tower.class_token,
            )
            cls.patch(block, settings)
    _add_hooks(holders)
    for holder, kind in zip(holders, tapped_classes, strict=True):
        if kind is not None:
            holder.__class__ = kind
    return model


def remove_patch(model: Model) -> Model:
    """Undo apply_patch; a model that is not patched stays as it is. Returns the model."""
    _take_off(model, (Patched,))
    return model


def _take_off(model: nn.Module, kinds: tuple[type[Patched], ...]) -> None:
    """Raises ArgumentError, before anything changes, where another class was put on since."""
    wrapped = [module for module in model.modules() if isinstance(module, kinds) and "host" not in vars(type(module))]
    for part in wrapped:
        if not isinstance(part, Tapped):  # which, left on, does nothing
            raise ArgumentError(
                f"{type(part).__name__} was made of a patched module, as FSDP and parametrizations do: patch and "
                "unpatch before that"
            )
    for module in model.modules():
        if isinstance(module, MergingBlock) and "forward" in vars(module):
            raise ArgumentError(
                f"a patched {module.host.__name__} has a forward of its own, as accelerate's hooks give it: take it off"
            )
    for module in model.modules():
        if isinstance(module, kinds) and module not in wrapped:
            module.unpatch()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs):
            hooks.pop(HOOK, None)


def _add_hooks(holders: Iterable[nn.Module]) -> None:
    """holders: modules that hold a tower's blocks."""
    for module in holders:
        module._forward_pre_hooks[HOOK] = refuse_outputs
        module._forward_pre_hooks_with_kwargs[HOOK] = True
        module._forward_hooks[HOOK] = dense_outputs
        # Others, whenever they came, see what a caller does.
        cast("OrderedDict[Any, Any]", module._forward_hooks).move_to_end(HOOK, last=False)


def _holds_one_of(towers: list[Tower], module: nn.Module) -> bool:
    """Whether all blocks of a tower are below a module: what holds a few, or wraps one, passes tokens on."""
    below = set(module.modules()) - {module}
    return any(below.issuperset(tower.blocks) for tower in towers)


def _class_of(tower: Tower, block: nn.Module) -> type[MergingBlock]:
    return merging_class(type(block), _layout_of(tower, block))  # type: ignore[arg-type]


def _layout_of(tower: Tower, block: nn.Module) -> Layout:
    """The layout of a block. Raises ArgumentError when the tower has none for its class."""
    found = tower.layouts.get(type(block))
    if found is None:
        named = ", ".join(cls.__name__ for cls in tower.layouts) or "no class"
        raise ArgumentError(f"a tower has a block of {type(block).__name__}, and layouts of {named}")
    return found


def _nothing_found(model: nn.Module, find_tower: FindTower | None) -> str:
    if find_tower is not None:
        return f"find_tower knows no module of {type(model).__name__}"
    return (
        f"{type(model).__name__} holds no vision transformer that apply_patch knows ({', '.join(HOSTS)}); write its "
        "block with alt_fast.ToMeAttention, or describe it with find_tower and a Layout (docs/token_merging.md)"
    )


def merge_trace(model: nn.Module) -> MergeTrace:
    """Where tokens went in a model patched with trace_source=True, the last time that they reached its last block.

    With several towers, the first one's. Raises ArgumentError when the model keeps no trace or has not run.
    """
    tracing = [module for module in model.modules() if isinstance(module, MergingBlock) and module.tome.trace]
    if not tracing:
        raise ArgumentError("the model keeps no trace: apply_patch(model, trace_source=True)")
    last = tracing[0]
    for block in tracing[1:]:  # of the first tower
        if block.tome.layer <= last.tome.layer:
            break
        last = block
    if not last.tome.last:
        raise ArgumentError("the model lost its last block since it was patched, which keeps the trace: patch it again")
    if last.last_trace is None:
        raise ArgumentError("the model has not run since it was patched, or last inside a transform, which keeps none")
    return MergeTrace(*last.last_trace)


def find_towers(model: nn.Module, find_tower: FindTower | None = None) -> Iterator[Tower]:
    """Yield every vision tower in `model` that an adapter knows, as `apply_patch` finds them. Raises ArgumentError."""
    for module in model.modules():
        if find_tower is not None:
            tower = find_tower(module)
            if tower is not None:
                yield tower
            continue
        roots = {cls.__module__.partition(".")[0] for cls in type(module).__mro__}
        for host, (adapter, _) in HOSTS.items():
            if host in roots:
                tower = import_module(f"alt_fast.tome.hosts.{adapter}").find_tower(module)
                if tower is not None:
                    yield tower
