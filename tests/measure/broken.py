"""Ways to remove tokens that are wrong on purpose, one fault each, and one that is right."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

import alt_fast
from alt_fast.tome.tokens import Attended, Tokens, merge_step


def right(model: nn.Module, r: Any) -> nn.Module:
    """Token merging."""
    return alt_fast.apply_patch(model, r=r)


def returns_patches(model: Any, r: Any) -> None:
    """The model without its pooling."""
    alt_fast.apply_patch(model, r=r)
    model.forward_head = lambda x, **_: x.flatten(1)


def remembers(model: Any, r: Any) -> None:
    """A running mean of all outputs."""
    alt_fast.apply_patch(model, r=r)
    model.before = None

    def mix(module: Any, args: Any, out: Tensor) -> Tensor:
        mixed = out if module.before is None else (out + module.before[: len(out)].mean(0)) / 2
        module.before = out.clone()
        return mixed

    model.register_forward_hook(mix)


def ignores_r(model: nn.Module, r: Any) -> None:
    """Always four tokens."""
    alt_fast.apply_patch(model, r=4)


def claims_more(model: nn.Module, r: Any) -> None:
    """Merging, with a claim of twice as much."""
    alt_fast.apply_patch(model, r=r)


claims_more.tokens = lambda n, protected, layers, r: [n - 2 * r * (i + 1) for i in range(layers)]  # type: ignore[attr-defined]


def _waiting_step(at: Attended, how: str) -> tuple[Tokens, Tensor]:
    """Ask the host how many tokens there are to merge."""
    norms = at.key.flatten(2).norm(dim=-1)
    if how == "item":
        assert norms.max().item() >= 0
    elif how == "mask":
        assert norms[norms > 0].ndim == 1
    elif how == "tolist":
        assert norms.tolist()
    elif how == "nonzero":
        assert len(torch.nonzero(norms)) > 0
    return merge_step(at)


def waits(model: nn.Module, r: Any, how: str = "item") -> None:
    """Reads a value in every block."""
    alt_fast.apply_patch(model, r=r, step=functools.partial(_waiting_step, how=how))


def divides_by_zero(model: Any, r: Any) -> None:
    """A feature that is NaN."""
    alt_fast.apply_patch(model, r=r)
    model.register_forward_hook(
        lambda module, args, out: out + torch.zeros(1).log() * (torch.arange(out.shape[1]) == 0)
    )


def changes_weights(model: Any, r: Any) -> None:
    """A norm folded into what follows, wrongly."""
    alt_fast.apply_patch(model, r=r)
    with torch.no_grad():
        model.norm.weight.mul_(1.1)


def random_every_time(model: nn.Module, r: Any) -> None:
    """Other pairs in every call, by a generator that no seed reaches."""
    generator = torch.Generator()
    generator.seed()

    def step(at: Attended) -> tuple[Tokens, Tensor]:
        noise = torch.randn(at.key.shape, generator=generator)
        return merge_step(Attended(**{**vars(at), "key": noise}))

    alt_fast.apply_patch(model, r=r, step=step)


def detaches(model: Any, r: Any) -> None:
    """No gradient passes the first block."""
    alt_fast.apply_patch(model, r=r)
    model.blocks[1].register_forward_pre_hook(
        lambda block, args: (Tokens(args[0].x.detach(), args[0].token_size, args[0].merges),)
    )


def breaks_the_graph(model: Any, r: Any) -> None:
    """A print in the middle."""
    alt_fast.apply_patch(model, r=r)
    model.blocks[0].register_forward_pre_hook(lambda block, args: torch._dynamo.graph_break())
