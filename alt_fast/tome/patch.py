"""Token merging for other people's vision transformers: apply_patch, remove_patch.

Only instances change: their blocks (and timm's attentions) get another class, one that knows token sizes and merges. No
parameter is touched, added or renamed, so state_dict, deepcopy, pickle and optimizers work as before.
"""

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from alt_fast.errors import ArgumentError
from alt_fast.tome.block import BlockSettings, MergingBlock, Patched, Tower
from alt_fast.tome.schedule import Reduction, merge_schedule

Model = TypeVar("Model", bound=nn.Module)

HOSTS = {
    "timm": ("timm", "VisionTransformer, also distilled: class tokens, registers, LayerScale, qk-norm, pooled heads"),
    "open_clip": ("open_clip", "the vision tower, alone or in the whole CLIP"),
    "transformers": ("transformers", "ViT, DeiT, CLIP, DINOv2 with or without registers, SigLIP (transformers 5)"),
    "torchvision": ("torchvision", "VisionTransformer"),
    "clip": ("openai_clip", "the vision tower of OpenAI's CLIP, alone or in the whole"),
}
"""Libraries with an adapter, by the top module of their classes: the adapter in `tome.hosts`, and what it takes."""


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
    unmerge: bool | None = None,
) -> Model:
    """Make every vision tower in `model` merge tokens; returns the model, patched in place.

    model: of timm (VisionTransformer and its distilled form), open_clip, transformers (ViT, DeiT, CLIP, DINOv2 with or
        without registers, SigLIP), torchvision or OpenAI's clip; or any module that contains one. Text towers stay as
        they are.
    r: tokens to remove per layer: an int, one int per layer, (r, inflect), or a float, the fraction of every layer's
        tokens.
    prop_attn: a token counts in attention as often as the patches it stands for; off for models trained with merging
        and without it.
    trace_source: keep where tokens went, for `merge_trace`.
    unmerge: give every patch its token's features after the last block, so that pooled heads weigh patches equally and
        dense features keep their grid. None: where the model reads patch tokens (average or attention pooling, HF's
        last_hidden_state).

    A model patched before gets the new settings. Raises ArgumentError naming what merging cannot honour (windows,
    relative position bias, rotary positions, other blocks or attentions), TypeError when model is no module; then the
    model is as it was before.
    """
    return patch_towers(model, _towers, r, prop_attn, trace_source, unmerge)


def patch_towers(
    model: Model,
    find: Callable[[nn.Module], Iterable[Tower]],
    r: Reduction,
    prop_attn: bool,
    trace_source: bool,
    unmerge: bool | None,
) -> Model:
    """Make the towers that `find` finds in `model` merge, all of them or none; the rest is as in `apply_patch`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    before = [(block, block.tome, block.last_trace) for block in model.modules() if isinstance(block, MergingBlock)]
    ours = [type(block) for block, _, _ in before]
    for merging, _, _ in before:
        merging.unpatch()
    try:
        towers = list(find(model))
        if not towers:
            raise ArgumentError(
                f"{type(model).__name__} holds no vision transformer that apply_patch knows ({', '.join(HOSTS)}); "
                "write its block with alt_fast.ToMeAttention instead"
            )
        schedules = [merge_schedule(r, len(tower.blocks)) for tower in towers]
    except BaseException:  # the model is left as it was
        for cls, (patched, settings, trace) in zip(ours, before, strict=True):
            cls.patch(patched, settings)
            patched.last_trace = trace
        raise
    for tower, schedule in zip(towers, schedules, strict=True):
        dense = tower.reads_patches if unmerge is None else unmerge
        for i, (block, r_block) in enumerate(zip(tower.blocks, schedule, strict=True)):
            settings = BlockSettings(r_block, tower.protected, prop_attn, trace_source, dense, i == len(schedule) - 1)
            tower.merging[type(block)].patch(block, settings)
    return model


def remove_patch(model: Model) -> Model:
    """Undo apply_patch; a model that is not patched stays as it is. Returns the model."""
    for module in model.modules():
        if isinstance(module, Patched):
            module.unpatch()
    return model


def merge_trace(model: nn.Module) -> MergeTrace:
    """Where tokens went in the last forward pass of a model patched with trace_source=True.

    With several towers, the first one's. Raises ArgumentError when the model keeps no trace or has not run.
    """
    for module in model.modules():
        if isinstance(module, MergingBlock) and module.tome.last and module.tome.trace:
            if module.last_trace is None:
                raise ArgumentError("the model has not run since it was patched")
            return MergeTrace(*module.last_trace)
    raise ArgumentError("the model keeps no trace: apply_patch(model, trace_source=True)")


def _towers(model: nn.Module) -> Iterator[Tower]:
    for module in model.modules():
        roots = {cls.__module__.partition(".")[0] for cls in type(module).__mro__}
        for host, (adapter, _) in HOSTS.items():
            if host in roots:
                tower = import_module(f"alt_fast.tome.hosts.{adapter}").find_tower(module)
                if tower is not None:
                    yield tower
