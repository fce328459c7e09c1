"""Ways to remove tokens that are wrong on purpose, one fault each, and one that is right."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
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


def keeps_results(model: Any, r: Any) -> None:
    """Computes once for every batch that it is given."""
    alt_fast.apply_patch(model, r=r)
    compute, kept = model.forward, {}

    def forward(x: Tensor) -> Tensor:
        key = tuple(x.flatten()[:9].tolist()), len(x)
        if key not in kept:
            kept[key] = compute(x)
        return kept[key]

    model.forward = forward


def takes_whole_batches_alone(model: Any, r: Any) -> None:
    """Token merging of three images, or of two, at once."""
    alt_fast.apply_patch(model, r=r)

    def refuse(module: Any, args: Any) -> None:
        if len(args[0]) < 2:
            raise ValueError("one image is no batch")

    model.register_forward_pre_hook(refuse)


def nothing(model: nn.Module, r: Any) -> None:
    """Misses the model's blocks."""


def keeps_the_first_plan(model: nn.Module, r: Any) -> None:
    """Matches once for every layer and number of images, and merges what comes later by that."""
    plans: dict[tuple[int, int], Tensor] = {}

    def step(at: Attended) -> tuple[Tokens, Tensor]:
        key = plans.setdefault((at.layer, len(at.key)), at.key)
        return merge_step(Attended(**{**vars(at), "key": key}))

    alt_fast.apply_patch(model, r=r, step=step)


def ignores_r(model: nn.Module, r: Any) -> None:
    """Always four tokens."""
    alt_fast.apply_patch(model, r=4)


def claims_more(model: nn.Module, r: Any) -> None:
    """Merging, with a claim of twice as much."""
    alt_fast.apply_patch(model, r=r)


claims_more.tokens = lambda n, protected, layers, r: [n - 2 * r * (i + 1) for i in range(layers)]  # type: ignore[attr-defined]


WAITS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "item": (lambda norms: norms.max().item(), "item"),
    "bool": (lambda norms: bool(norms.max() > 0), "item"),
    "mask": (lambda norms: norms[norms > 0], "index"),
    "values at a mask": (
        lambda norms: norms.clone().index_put_((norms > 0,), norms[0, :1].expand(norms.numel())),
        "index_put_",
    ),
    "tolist": (lambda norms: norms.tolist(), "tolist"),
    "nonzero": (torch.nonzero, "nonzero"),
    "nonzero as a tuple": (lambda norms: norms.nonzero(as_tuple=True), "nonzero"),
    "where of a mask": (lambda norms: torch.where(norms > 0), "nonzero"),
    "argwhere": (torch.argwhere, "nonzero"),
    "unique": (torch.unique, "unique"),
    "allclose": (lambda norms: torch.allclose(norms, norms), "allclose"),
    "to a CPU": (lambda norms: norms.to("cpu"), "to"),
    "to a CPU, by keyword": (lambda norms: norms.to(device="cpu"), "to"),
    "repeats of a tensor": (lambda norms: norms.repeat_interleave(norms[0].long(), 1), "repeat_interleave"),
    "synchronize": (lambda norms: torch.cuda.synchronize(), "synchronize"),
}
"""Ways to wait for norms of keys [B, N], and what each is called where it is told."""

GOES_ON: dict[str, Callable[[Tensor], object]] = {
    "repeats of an int": lambda norms: norms.repeat_interleave(2, 1),
    "repeats of a tensor to a known size": lambda norms: norms.repeat_interleave(
        torch.full((norms.shape[1],), 2), 1, output_size=2 * norms.shape[1]
    ),
    "where of three": lambda norms: torch.where(norms > 0, norms, 0),
    "one number at a mask": lambda norms: norms.clone().index_put_((norms > 0,), norms[0, 0]),
    "to a dtype": lambda norms: norms.to(torch.float64).to(norms.device),
}
"""What looks as if it waited, and does not."""


def _asking_step(at: Attended, how: str) -> tuple[Tokens, Tensor]:
    """Ask something of the keys, then merge."""
    ask = GOES_ON[how] if how in GOES_ON else WAITS[how][0]
    ask(at.key.flatten(2).norm(dim=-1))
    return merge_step(at)


def waits(model: nn.Module, r: Any, how: str = "item") -> None:
    """Reads a value in every block."""
    alt_fast.apply_patch(model, r=r, step=functools.partial(_asking_step, how=how))


def returns_another_dtype(model: Any, r: Any) -> None:
    """The same numbers, wider."""
    alt_fast.apply_patch(model, r=r)
    model.register_forward_hook(lambda module, args, out: out.double())


def hides_work(model: Any, r: Any) -> None:
    """A product that NumPy computes."""
    alt_fast.apply_patch(model, r=r)
    linear = model.blocks[0].mlp.fc1

    def product(x: Tensor) -> Tensor:
        numbers = np.from_dlpack(x.detach()) @ np.from_dlpack(linear.weight.detach()).T
        return torch.as_tensor(numbers) + linear.bias

    linear.forward = product


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
