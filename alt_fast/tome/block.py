"""The forward pass of a block that merges, common to all hosts: attention, merge, MLP."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, wraps
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from alt_fast.errors import ArgumentError
from alt_fast.tome.destinations import Destinations
from alt_fast.tome.layout import Layout, apply_parts, attentions, full_name, part
from alt_fast.tome.rotary import Turns, begin, merge_turns, rotation
from alt_fast.tome.rules import RotaryRule
from alt_fast.tome.tokens import Attended, Step, Tokens, as_dense, merge_step
from alt_fast_kernels import Rotary
from alt_fast_kernels.checks import is_plain
from alt_fast_kernels.lane import lane


@dataclass(frozen=True)
class BlockSettings:
    """What apply_patch decided for one block.

    r: tokens to remove, or a fraction. protected: leading tokens that never merge. prop_attn: attention uses sizes.
    trace: keep where tokens went. unmerge: every patch has its token's features in what the host reads. layer,
    num_layers: which block of its tower, from 0. rotary: what becomes of rotary positions. destinations: which tokens
    others merge into. step: what removes tokens. class_token: whether the first of the protected is one.
    """

    r: int | float
    protected: int
    prop_attn: bool
    trace: bool
    unmerge: bool
    layer: int
    num_layers: int
    rotary: RotaryRule = "mean"
    destinations: Destinations = 2
    step: Step = merge_step
    class_token: bool = True

    @property
    def last(self) -> bool:
        """Whether it is the last of its tower."""
        return self.layer == self.num_layers - 1


class Patched(nn.Module):
    """Mixed into a host's module for as long as it is patched: it has a class made of this and its own."""

    host: ClassVar[type[nn.Module]]  # the class that the module had, and gets back

    def unpatch(self) -> None:
        """Turn it back."""
        self.__class__ = self.host  # type: ignore[assignment]


def host_of(module: nn.Module) -> Any:
    """Return the class that a module has without a patch."""
    return module.host if isinstance(module, Patched) else type(module)


class Tapped(Patched):
    """Mixed into the class of a tower whose methods return what its blocks gave: there they return tensors."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle by the host's class, since ours is made while running."""
        return _empty_tapped, (self.host,), self.__getstate__()


TAPS = ("forward_intermediates", "get_intermediate_layers", "forward_features")
"""timm's and open_clip's methods that return what blocks gave, and which no hook follows."""

NO_GRID = {"output_fmt": "NLC", "reshape": False}
"""Their options for tokens as they are."""


def dense_taps(host: type) -> dict[str, Callable[..., Any]]:
    """Return the methods of a host's class that are among TAPS, giving tensors; no grid of what stays merged."""

    def dense(method: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(method)
        options_of_grids = NO_GRID.keys() & signature.parameters.keys()

        @wraps(method)
        def call(self: Any, *args: Any, **options: Any) -> Any:
            if options_of_grids:
                asked = signature.bind(self, *args, **options)
                asked.apply_defaults()
                for name in options_of_grids:
                    if asked.arguments[name] != NO_GRID[name]:
                        _refuse_grid(self, f"{name}={NO_GRID[name]!r}")
            return as_dense(method(self, *args, **options))

        return call

    found = ((name, inspect.getattr_static(host, name, None)) for name in TAPS)
    return {name: dense(getattr(host, name)) for name, method in found if inspect.isfunction(method)}


def _refuse_grid(module: nn.Module, instead: str) -> None:
    """Raise ArgumentError where tokens that stay merged would be reshaped to a grid, whose patches they are not."""
    settings = (block.tome for block in module.modules() if isinstance(block, MergingBlock))
    if any((tome.r or tome.step is not merge_step) and not tome.unmerge for tome in settings):
        raise ArgumentError(f"merged tokens have no grid: apply_patch with unmerge=True, or ask for {instead}")


@cache
def tapped_class(host: Any) -> type[Tapped] | None:
    """Make the class of a host's tower one whose taps give tensors; None where it has none, or one of ours."""
    taps = dense_taps(host)
    if issubclass(host, Patched) or not taps:
        return None
    return type(host.__name__, (Tapped, host), {"host": host, **taps})


def _empty_tapped(host: Any) -> Tapped:
    cls = tapped_class(host)
    assert cls is not None
    return cls.__new__(cls)


class MergingBlock(Patched):
    """Mixed into a host's block. The first block takes a tensor, the last returns one; `Tokens` go between.

    So sizes travel as arguments: activation checkpointing, compilation and threads see no hidden state.
    """

    layout: ClassVar[Layout]
    arguments: ClassVar[tuple[str, ...]]  # of the host's forward, the tokens first
    tome: BlockSettings
    attended: tuple[tuple[str, type[nn.Module]], ...]  # what attended at the time, by place and class
    last_trace: tuple[Tensor, Tensor] | None

    def forward(self, *args: Any, **options: Any) -> Any:
        """Take the block's tokens, return merged ones. The host's further arguments must say nothing: no mask."""
        if len(args) > len(self.arguments):
            raise ArgumentError(f"a merging block takes {', '.join(self.arguments)}, got {len(args)} arguments")
        options = {**dict(zip(self.arguments, args, strict=False)), **options}
        if self.arguments[0] not in options:
            raise ArgumentError(f"a merging block takes tokens, as {self.arguments[0]}, and got none")
        hidden = options.pop(self.arguments[0])
        if isinstance(hidden, torch.fx.Proxy):
            raise ArgumentError(
                "a merging block cannot be traced by torch.fx: ask for features by forward_intermediates, "
                "features_only or output_hidden_states"
            )
        if self._backward_hooks or self._backward_pre_hooks:
            raise ArgumentError("a merging block cannot call full backward hooks: hook a norm1 instead")
        refuse_options(options, self.layout.options)
        x = hidden.x if isinstance(hidden, Tokens) else hidden
        if x.requires_grad and not torch.is_grad_enabled():
            raise RuntimeError(
                "tokens that need a gradient came without one being recorded: give reentrant activation checkpointing "
                "use_reentrant=False, call the whole model under no_grad, or detach the tokens first"
            )
        if isinstance(hidden, Tokens):
            tokens = hidden
        else:
            first = self.layout.sequence_first
            x = hidden.transpose(0, 1) if first else hidden
            tokens = Tokens(x, unmerges=self.tome.unmerge, sequence_first=first)
        tokens = self.run(tokens, self.tome.r, options=options)
        result = self._finish(tokens) if self.tome.last else tokens
        return (result, None) if self.layout.returns_tuple else result

    def run(
        self,
        tokens: Tokens,
        r: int | float,
        adapters: nn.ModuleDict | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Tokens:
        """Attend, merge r tokens away, and apply the MLP.

        adapters: "spatial" is applied to the attention branch and added to it, "mlp" runs beside the MLP. options: what
        the host's block was called with.
        """
        tome, layout = self.tome, self.layout
        at = {} if adapters is None else dict(adapters.items())
        tokens, rotary = self._rotary(tokens, options or {})
        normed = tokens.x if layout.norm1 is None else part(self, layout.norm1)(tokens.x)
        size = tokens.token_size if tome.prop_attn else None
        attention = part(self, layout.attention)
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):  # type: ignore[attr-defined]
            self._refuse_replaced()
        norm = None if layout.norm2 is None else part(self, layout.norm2)
        with lane(tokens.x):  # matching may go on beside attention
            branch, key = layout.attend(attention, normed, size, rotary)
            branch = apply_parts(self, layout.after_attention, branch)
            if "spatial" in at:
                branch = branch + at["spatial"](branch)
            attended = Attended(
                tokens,
                branch,
                key,
                r,
                tome.protected,
                layer=tome.layer,
                num_layers=tome.num_layers,
                norm=norm,
                rule=tome.rotary,
                destinations=tome.destinations,
                attention=attention,
                normed=normed,
                rotary=rotary,
                class_token=tome.class_token,
                prop_attn=tome.prop_attn,
            )
            tokens, normed = tome.step(attended)
        if callable(layout.mlp):
            x = tokens.x + layout.mlp(self, normed)
        elif layout.mlp:
            x = tokens.x + apply_parts(self, layout.mlp, normed)
        else:
            x = tokens.x
        if "mlp" in at:
            x = x + at["mlp"](normed)
        return replace(tokens, x=x)

    def _refuse_replaced(self) -> None:
        """Raise ArgumentError where what attends is no longer what `patch` found. Other names of a class will do."""
        for path, kind in self.attended:
            attention = part(self, path)
            if path and getattr(type(attention), "forward", None) is not kind.forward:
                raise ArgumentError(
                    f"{path} of a {self.host.__name__} was {full_name(kind)} and is {full_name(type(attention))}, "
                    "which a merging block would pass over: put it in place, then patch"
                )
            _refuse_bypassed(attention)
            if self.layout.check_attention is not None:
                self.layout.check_attention(attention)

    def _rotary(self, tokens: Tokens, options: Mapping[str, Any]) -> tuple[Tokens, Rotary | None]:
        """The tokens with their turns, and what attention turns by."""
        layout, rule = self.layout, self.tome.rotary
        turns = tokens.turns
        if turns is None:
            turns = self._turns(tokens, options)
        if turns is None:
            return tokens, None
        if not layout.per_layer_rotary:
            tokens = replace(tokens, turns=turns)
        return tokens, rotation(turns, rule)

    def _turns(self, tokens: Tokens, options: Mapping[str, Any]) -> Turns | None:
        """Turns of all tokens that there ever were, merged as they were; None without rotary positions."""
        rule, rotary = self.tome.rotary, self.layout.rotary
        num_tokens = tokens.merges[0][1].shape[1] if tokens.merges else tokens.x.shape[1]
        given = None if rotary is None else rotary(self, options, num_tokens)
        if given is None:
            return None
        turns = begin(given, num_tokens, self.tome.protected, tokens.x.dtype, rule)
        for plan, weight in tokens.merges:
            turns = merge_turns(turns, weight, plan, rule)
        return turns

    def _finish(self, tokens: Tokens) -> Tensor:
        if self.tome.trace:
            source, size = tokens.source(), tokens.sizes()
            kept = torch.compiler.is_compiling() or (is_plain(source) and is_plain(size))
            self.last_trace = (source, size) if kept else None
        return tokens.dense()

    @classmethod
    def patch(cls, block: nn.Module, settings: BlockSettings) -> None:
        """Turn the host's block into this class."""
        block.attended = tuple(  # type: ignore[assignment]
            (path, type(module)) for path, module in attentions(block, cls.layout)
        )
        block.__class__ = cls
        block.tome = settings  # type: ignore[assignment]
        block.last_trace = None  # type: ignore[assignment]

    def unpatch(self) -> None:
        super().unpatch()
        del self.tome, self.attended, self.last_trace


@cache
def merging_class(host: type[nn.Module], layout: Layout) -> type[MergingBlock]:
    """Make the class of a host's blocks one that merges."""
    parameters = list(inspect.signature(host.forward).parameters.values())[1:]
    arguments = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    arguments = arguments or ("hidden",)  # of a forward(*args)
    members = {"host": host, "layout": layout, "arguments": arguments, "__reduce_ex__": _reduce}
    return type(host.__name__, (MergingBlock, host), members)


def _reduce(block: MergingBlock, protocol: Any) -> Any:
    """Copy and pickle by the host's class, since ours is made while running."""
    reduced: Any = nn.Module.__reduce_ex__(block, protocol)
    return _empty_block, (block.host, block.layout), *reduced[2:]


def _empty_block(host: type[nn.Module], layout: Layout) -> MergingBlock:
    cls = merging_class(host, layout)  # type: ignore[arg-type]
    return cls.__new__(cls)


def check_reached(block: nn.Module, layout: Layout) -> None:
    """Raise ArgumentError for a block, or an attention in it, whose call would do more than its weights say."""
    if "forward" in vars(block):
        raise ArgumentError(
            f"a {type(block).__name__} has a forward of its own, as accelerate's hooks give it, which merging would "
            "not reach"
        )
    _refuse_foreign_forward(type(block))
    for _, attention in attentions(block, layout):
        _refuse_bypassed(attention)


def _refuse_bypassed(attention: nn.Module) -> None:
    """Raise ArgumentError where calling a host's attention would do more than its weights say.

    Hooks in general do not: profilers have them on every module.
    """
    own = "forward" in vars(attention)
    weights = any(type(hook).__module__.startswith("torch.nn.utils.") for hook in attention._forward_pre_hooks.values())
    if own or weights:
        what = "a forward of its own" if own else "weights that a hook computes (pruning, weight_norm)"
        raise ArgumentError(f"{type(attention).__name__} has {what}, which a merging block would pass over")
    _refuse_foreign_forward(type(attention))


LIBRARIES = ("timm", "open_clip", "transformers", "torchvision", "clip", "torch")
"""Top modules of classes whose forward is their own, as PyTorch decorates it at most."""


def _refuse_foreign_forward(kind: type[nn.Module]) -> None:
    """Raise ArgumentError where somebody put another forward on a class of a library, as recorders of attention do."""
    owner = next(cls for cls in kind.__mro__ if "forward" in vars(cls))
    library = owner.__module__.partition(".")[0]
    given = getattr(vars(owner)["forward"], "__globals__", {}).get("__name__")  # wraps() copies all but that
    if library in LIBRARIES and given is not None and given.partition(".")[0] not in (library, "torch"):
        raise ArgumentError(
            f"{kind.__name__} has a forward of {given}, put in the place of its own, which merging would not reach"
        )


MASKS = ("attn_mask", "attention_mask")
"""Options that may be there and say nothing, as booleans that are all true or additions that are all 0."""


def refuse_options(options: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raise ArgumentError for an option in use, neither None nor False, that is not known to suit merged tokens.

    known: the layout's. A mask that masks nothing suits them, too.
    """
    for name, value in options.items():
        if value is None or value is False or name in known:
            continue
        if name in MASKS and isinstance(value, Tensor):
            keeps_all = value.all() if value.dtype == torch.bool else (value == 0).all()
            if torch.compiler.is_compiling() or (value.is_cuda and torch.cuda.is_current_stream_capturing()):
                torch._assert_async(keeps_all, f"a merging block cannot honour {name}")
                continue
            if bool(keeps_all):
                continue
        if type(value).__name__ == "BlockMask":
            raise ArgumentError(
                f"a merging block cannot read {name}, a mask of flex attention: call set_attn_implementation('sdpa')"
            )
        raise ArgumentError(f"a merging block cannot honour {name}: it may depend on which token is which")


def refuse_outputs(module: nn.Module, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """Raise ArgumentError for what transformers cannot return of merged tokens: a hook before what holds blocks.

    Attentions: models record them where the host's attention is called, which a merging block does not do, and not all
    of them tell their layers. A model around the tower may be asked for those of its other parts. Grids: backbones
    reshape what they read to them, tokens that stay merged, too.
    """
    config = getattr(module, "config", None)
    if config is not None and options.get("output_attentions", getattr(config, "output_attentions", False)):
        blocks = (block for block in module.modules() if isinstance(block, MergingBlock))
        if any(getattr(part, "config", None) is config for block in blocks for part in block.modules()):
            raise ArgumentError("a merging block cannot honour output_attentions: it does not compute them")
    is_backbone = any(cls.__name__ == "BackboneMixin" for cls in type(module).__mro__)  # without the import
    if is_backbone and getattr(config, "reshape_hidden_states", False):
        _refuse_grid(module, "reshape_hidden_states=False")
