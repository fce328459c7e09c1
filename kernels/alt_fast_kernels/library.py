"""How kernels enter PyTorch: operators `torch.ops.alt_fast.*`, and functions of them that have a gradient.

`torch.library.custom_op` and `register_autograd` offer the same at several times the host time per call, and refuse
`torch.func`'s transforms.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any, NoReturn

import torch
from torch import Tensor, autograd
from torch.autograd import forward_ad

_LIBRARY = torch.library.Library("alt_fast", "DEF")

VmapRule = Callable[..., tuple[Any, Any]]
"""(info, in_dims, *args) -> results, out_dims; see torch.library.register_vmap."""


def operator(schema: str, empty: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of tensors as `torch.ops.alt_fast.NAME`, on every device, without a gradient.

    schema: "NAME(arguments) -> results" as `torch.library.define` takes it. empty: takes the same arguments and returns
    the results unfilled; this is what tracing and `meta` tensors see.
    """

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        name = schema.partition("(")[0]
        _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"alt_fast::{name}", empty, lib=_LIBRARY)
        op: Callable[..., Any] = getattr(torch.ops.alt_fast, name).default
        return op

    return register


@cache
def kernels_of(op: str) -> Any:
    """Return the module of an op's kernels. Triton is imported with it, when one of them first runs.

    An import statement in the operator would be looked up anew at every call, for about 2 us each.
    """
    return import_module(f"alt_fast_kernels.{op}.triton")


def register_vmap(op: Callable[..., Any], rule: VmapRule) -> None:
    """Give an operator a rule for `torch.vmap`; without one it runs once per mapped element, with a warning."""
    torch.library.register_vmap(op, rule, lib=_LIBRARY)  # type: ignore[arg-type]


def differentiable(
    op: Callable[..., Any], save: Callable[..., None], backward: Callable[..., tuple[Any, ...]]
) -> Callable[..., Any]:
    """Return op with a gradient. It can be taken once, in reverse mode; more raises NotImplementedError.

    save(ctx, inputs, output) keeps what backward(ctx, *grads) needs, as `torch.autograd.Function` has them.
    """

    class Gradient(autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return op(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            save(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    class EagerGradient(Gradient):  # torch.compile takes no Function with a jvp
        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> NoReturn:
            _refuse("forward-mode differentiation")

    def compiled(*args: Any) -> Any:
        from alt_fast_kernels.transforms import functorch_transforms

        transforms = functorch_transforms()
        if "Jvp" in transforms:
            _refuse("forward-mode differentiation")
        if not torch.is_grad_enabled():
            return op(*args)
        # Dynamo takes no tensor twice; and what `torch.func.grad` differentiates requires grad from its first view on.
        args = tuple(x.view_as(x) if isinstance(x, Tensor) else x for x in args)
        if not _needs_gradient(args):
            return op(*args)
        if "Vmap" in transforms:
            _refuse("a gradient under vmap in torch.compile")
        return Gradient.apply(*args)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return compiled(*args)
        return EagerGradient.apply(*args) if _may_need_gradient(args) else op(*args)

    return call


def once(backward_op: Callable[..., Any]) -> Callable[..., Any]:
    """Return a backward operator whose own gradient, a second derivative, raises NotImplementedError."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None: ...

    def refuse(ctx: Any, *grads: Any) -> NoReturn:
        _refuse("a second derivative")

    eager = differentiable(backward_op, save, refuse)

    def call(*args: Any) -> Any:
        # torch.compile itself refuses to differentiate twice, and takes no Function inside a Function's backward.
        return backward_op(*args) if torch.compiler.is_compiling() else eager(*args)

    return call


def _refuse(what: str) -> NoReturn:
    raise NotImplementedError(
        f'the kernels have no formula for {what}; inside alt_fast_kernels.use_backend("reference") PyTorch has, for '
        "attention inside torch.nn.attention.sdpa_kernel(SDPBackend.MATH) besides"
    )


def _needs_gradient(args: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)


def _may_need_gradient(args: Sequence[Any]) -> bool:
    """Return whether a gradient may be asked for: an autograd.Function costs what a whole launch does."""
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0 and not _needs_gradient(args):
        return False
    return torch._C._get_tracing_state() is None  # torch.jit.trace and fvcore see operators, not Functions


def fold_vmap(op: Callable[..., Any], per_image: int, broadcast: Sequence[int] = ()) -> VmapRule:
    """A vmap rule for an op whose first `per_image` arguments are tensors [B, ...] (or None) with results [B, ...].

    broadcast: positions of tensors [B or 1, ...] (or None) among the others. The mapped dimension folds into the batch;
    all else batched (weights, say) is refused.
    """

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        if any(dim is not None and i >= per_image and i not in broadcast for i, dim in enumerate(in_dims)):
            raise NotImplementedError(f"{op} can be mapped over its {per_image} per-image tensors only")

        def mapped(x: Tensor, dim: int | None) -> Tensor:
            return x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)

        folded = list(args)
        for i, (x, dim) in enumerate(zip(args, in_dims, strict=True)):
            if x is not None and i < per_image:
                folded[i] = mapped(x, dim).flatten(0, 1)
            elif x is not None and i in broadcast and (dim is not None or len(x) > 1):
                batch = len(folded[0]) // info.batch_size
                folded[i] = mapped(x, dim).expand(-1, batch, *[-1] * (x.ndim - (1 if dim is None else 2))).flatten(0, 1)
        out = op(*folded)

        def unfold(x: Tensor) -> Tensor:
            return x.unflatten(0, (info.batch_size, -1))

        return (unfold(out), 0) if isinstance(out, Tensor) else (tuple(map(unfold, out)), (0,) * len(out))

    return rule
