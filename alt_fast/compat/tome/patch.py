"""Patches for whole models, which then merge as `model.r` says: `timm`, `swag` and `mae`.

`alt_fast.apply_patch` does the work, all or nothing. Beside it the model gets a class of its own, made of `Steered` and
the one it had, where r is a property: what it is set to counts from the next forward pass on. `alt_fast.remove_patch`
undoes both.
"""

from dataclasses import replace
from functools import cache
from typing import Any, NoReturn

import torch.nn.functional as F
from torch import Tensor, nn

from alt_fast.compat.tome.utils import parse_r
from alt_fast.errors import ArgumentError
from alt_fast.tome.block import MergingBlock, Patched, dense_taps, host_of
from alt_fast.tome.layout import Tower
from alt_fast.tome.patch import FindTower, apply_patch, merge_trace

R = int | list[int] | tuple[int, float]


def timm(model: nn.Module, trace_source: bool = False, prop_attn: bool = True) -> None:
    """Patch timm's VisionTransformer in place: `model.r` is 0 then, and can be set to an int, a list or (r, inflect).

    trace_source: `model._tome_info` tells sizes and sources after a forward pass. prop_attn: attention counts a token
        as often as the patches it stands for; off for models trained with merging and without it.

    As with `alt_fast.apply_patch`, heads that average patches weigh them equally, whatever they merged into.
    Raises ArgumentError for other models and what merging cannot honour; the model is as it was then.
    """
    from timm.models.vision_transformer import VisionTransformer

    from alt_fast.tome.hosts.timm import find_tower

    if not isinstance(model, VisionTransformer):
        find_tower(model)  # says why, of relatives
        raise _not_taken("timm", model, "timm's VisionTransformer")
    _patch(model, find_tower, trace_source, prop_attn)


def swag(model: nn.Module, trace_source: bool = False, prop_attn: bool = True) -> None:
    """Patch a model with SWAG's weights in place: torchvision's VisionTransformer, or that of SWAG's own repository.

    The rest is as in `timm`.
    """
    from torchvision.models.vision_transformer import VisionTransformer

    from alt_fast.tome.hosts.torchvision import find_swag, find_tower, is_swag

    if isinstance(model, VisionTransformer):
        _patch(model, find_tower, trace_source, prop_attn)
    elif is_swag(model):
        _patch(model, find_swag, trace_source, prop_attn)
    else:
        accepted = "the VisionTransformer of torchvision (IMAGENET1K_SWAG_E2E_V1) or of SWAG's repository"
        raise _not_taken("swag", model, accepted)


def mae(model: nn.Module, trace_source: bool = False, prop_attn: bool = False) -> None:
    """Patch a fine-tuned masked autoencoder in place: timm's VisionTransformer, or a subclass such as MAE's own.

    A subclass may have a forward_features of its own that calls its blocks one after the other, each with the result of
    the one before. With `global_pool` set (to True or "avg"), patches get their grid back after the last block, so that
    an average weighs them equally. Attention ignores sizes unless prop_attn is set. The rest is as in `timm`.
    """
    from timm.models.vision_transformer import VisionTransformer

    from alt_fast.tome.hosts.timm import tower_of

    if not isinstance(model, VisionTransformer):
        raise _not_taken("mae", model, "timm's VisionTransformer or a subclass")
    _patch(model, tower_of, trace_source, prop_attn)


class Steered(Patched):
    """Mixed into the class of a patched model: r can be set at any time, and what happened can be read."""

    tome_r: R

    @property
    def r(self) -> R:
        """Tokens that every layer removes: an int, a list, or (r, inflect), as in `utils.parse_r`.

        A list is set as a whole: the one that is read cannot be changed.
        """
        schedule = [block.tome.r for block in self._merging_blocks()]
        given = self.tome_r if parse_r(len(schedule), self.tome_r) == schedule else schedule
        return Schedule(given) if isinstance(given, list) else given  # type: ignore[arg-type]

    @r.setter
    def r(self, r: R) -> None:
        blocks = self._merging_blocks()
        for block, r_block in zip(blocks, parse_r(len(blocks), r), strict=True):
            block.tome = replace(block.tome, r=r_block)
        self.tome_r = list(r) if isinstance(r, list) else r

    @property
    def _tome_info(self) -> dict[str, Any]:
        """What the model is set to and what happened in the last forward pass, to be read.

        r, trace_source, prop_attn: as given. class_token, distill_token: whether the model has them.
        size: [B, N', 1] fp32, patches in each final token. source: [B, N', N] fp32, 1 where the final token stands for
        the first one. Both are None before a forward pass, and without trace_source.
        """
        blocks = self._merging_blocks()
        settings = blocks[-1].tome
        size = source = None
        if settings.trace and (blocks[-1].last_trace is not None or not settings.last):  # of a cut model: an error
            trace = merge_trace(self)
            size = trace.size.unsqueeze(-1)
            source = F.one_hot(trace.source.long(), size.shape[1]).transpose(1, 2).float()
        return Info(
            r=self.r,
            size=size,
            source=source,
            trace_source=settings.trace,
            prop_attn=settings.prop_attn,
            class_token=self._has("cls_token", "class_token"),
            distill_token=self._has("dist_token"),
        )

    def unpatch(self) -> None:
        """Give the model its class back."""
        super().unpatch()
        del self.tome_r

    def _merging_blocks(self) -> list[MergingBlock]:
        blocks = [module for module in self.modules() if isinstance(module, MergingBlock)]
        if not blocks:
            raise ArgumentError("no block of the model merges any more: patch it again")
        return blocks

    def _has(self, *names: str) -> bool:
        return any(isinstance(getattr(self, name, None), Tensor) for name in names)

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        """Pickle and copy by the class that the model had: the one made of it has no name to be found by."""
        return _new, (self.host,), self.__getstate__()


class Schedule(list[int]):
    """Read from a model; writing to it would change nothing, and is an error. Copies are plain lists."""

    def _refuse(self, *args: Any, **options: Any) -> NoReturn:
        raise ArgumentError("a list in model.r is set as a whole: model.r = [...]")

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = extend = insert = pop = remove = clear = sort = reverse = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


class Info(dict[str, Any]):
    """Read from a model anew each time; writing to it would change nothing, and is an error. Copies are plain dicts."""

    def _refuse(self, *args: Any, **options: Any) -> NoReturn:
        raise ArgumentError("_tome_info is read only: set model.r, or patch again with other trace_source or prop_attn")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


@cache
def _steered(host: Any) -> type[Steered]:
    members = {"host": host, "__doc__": Steered.__doc__, **dense_taps(host)}
    return type(host.__name__, (Steered, host), members)


def _new(host: Any) -> Steered:
    cls = _steered(host)
    return cls.__new__(cls)


def _patch(model: nn.Module, find_tower: FindTower, trace_source: bool, prop_attn: bool) -> None:
    """Patch the blocks of the tower that `model` is, and give it a class that can be steered."""
    steered = type(model) if isinstance(model, Steered) else _steered(host_of(model))

    def itself(module: nn.Module) -> Tower | None:
        return find_tower(module) if module is model else None

    apply_patch(model, 0, prop_attn, trace_source, find_tower=itself)
    model.__class__ = steered
    model.tome_r = 0  # type: ignore[assignment]


def _not_taken(name: str, model: nn.Module, accepted: str) -> ArgumentError:
    given = f"{type(model).__module__}.{type(model).__qualname__}"
    return ArgumentError(f"patch.{name} takes {accepted}; got {given}. alt_fast.apply_patch knows other models")
