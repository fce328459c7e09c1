"""Calls of every op by shape, and the launches that they make: what is compiled, recorded, predicted and measured."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alt_fast_kernels import Rotary, align, match, merge, proportional_attention_qkvpacked, use_backend
from alt_fast_kernels.align.triton import HELD_WIDTHS
from alt_fast_kernels.configs import Arch
from alt_fast_kernels.cost import Cost, align_cost, attention_cost, match_cost, merge_cost
from alt_fast_kernels.launch import Launch, is_intercepted, recording
from alt_fast_kernels.match import MAX_CHANNELS, MergePlan
from alt_fast_kernels.prediction.around import Around, TorchCall

Layout = Literal["halves", "interleaved"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One call of an op, forward or backward: call(prepare()). cost: what it must at least do.

    prepare: draws inputs at random, on the default device; unfilled where launches are only recorded.
    """

    op: str
    shape: str
    prepare: Callable[[], Any]
    call: Callable[[Any], object]
    cost: Cost

    def launches(self, arch: Arch) -> list[Launch]:
        """What `call` launches, as configured for an architecture that need not be here."""
        return self.recorded(arch)[0]

    def recorded(self, arch: Arch) -> tuple[list[Launch], list[TorchCall]]:
        """What `call` launches, our kernels and PyTorch's own around them."""
        with use_backend("triton"), recording(arch), Around() as around:
            prepared = self.prepare()
            around.calls.clear()
            with recording(arch) as launches:
                self.call(prepared)
        return launches, around.calls


def _drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.empty(shape, dtype=dtype)
    return x if is_intercepted() else x.normal_()


def match_case(
    batch: int, num_tokens: int, heads: int, dim: int, r: int, dtype: torch.dtype = torch.bfloat16, *, every: int = 2
) -> Case:
    """Keys as a packed projection leaves them; a class token is protected, one token in `every` a destination."""
    num_listed = None if every == 2 else num_tokens // every
    cost = match_cost(batch, num_tokens, heads, dim, 1, dtype.itemsize, num_listed)
    shape = f"B={batch} N={num_tokens} H={heads} D={dim}{f' 1 in {every}' if num_listed else ''}"

    def keys() -> Tensor:
        return _drawn(batch, num_tokens, 3, heads, dim, dtype=dtype)[:, :, 1]

    return Case("match", shape, keys, lambda key: match(key, r, 1, every), cost)


def merge_case(
    batch: int, num_tokens: int, r: int, channels: int, dtype: torch.dtype = torch.bfloat16, *,
    fused: bool = True, backward: bool = False,
) -> Case:  # fmt: skip
    """Residual, merge and LayerNorm in one (fused), or the merge alone; r tokens join others, as random keys match."""
    num_slots = num_tokens - r
    norm = nn.LayerNorm(channels, dtype=dtype) if fused else None
    size = torch.ones(batch, num_tokens)

    def draw() -> tuple[Tensor, Tensor | None, MergePlan]:
        x, branch = _drawn(2, batch, num_tokens, channels, dtype=dtype).unbind(0)
        return x, branch if fused else None, match(_drawn(batch, num_tokens, 16), r, 1)

    def forward(x: Tensor, branch: Tensor | None, plan: MergePlan) -> tuple[Tensor, ...]:
        merged, _, *normed = merge(x, size, plan, branch, norm=norm)
        return merged, *normed

    cost = merge_cost(batch, num_tokens, r, channels, dtype.itemsize, fused, fused)
    weights = list(norm.parameters()) if norm is not None else []
    if backward:  # reads the gradients of x' (and of its norm, with x'), writes that of x
        moved = batch * (num_slots * (3 if fused else 1) + num_tokens) * channels * dtype.itemsize
        cost = Cost(cost.macs, moved)
    shape = f"B={batch} N={num_tokens} r={r} C={channels}{' fused' if fused else ''}"
    return _differentiated("merge", shape, draw, forward, weights, cost, backward)


def attention_case(
    batch: int, num_tokens: int, heads: int, dim: int, dtype: torch.dtype = torch.bfloat16, *,
    sized: bool = True, layout: Layout | None = None, wide: bool = False, backward: bool = False,
) -> Case:  # fmt: skip
    """Attention of a packed projection, with sizes or without, turned by tables of every image's or not.

    wide: tables are fp32, whatever the tokens are.
    """
    size = torch.ones(batch, num_tokens) if sized else None
    rotary = None
    if layout is not None:
        table = torch.ones(2, batch, num_tokens, 1, dim, dtype=torch.float32 if wide else dtype)
        cos, sin = table.unbind(0)
        rotary = Rotary(cos, sin, layout == "interleaved")

    def draw() -> tuple[Tensor]:
        return (_drawn(batch, num_tokens, 3, heads, dim, dtype=dtype),)

    def forward(qkv: Tensor) -> tuple[Tensor]:
        return (proportional_attention_qkvpacked(qkv, size, rotary=rotary),)

    rows = 0 if layout is None else batch * num_tokens
    cost = attention_cost(
        batch, num_tokens, num_tokens, heads, dim, dtype.itemsize, rows, 4 if wide else dtype.itemsize
    )
    if backward:  # five products for two; reads q, k, v, out and its gradient, writes three gradients
        cost = Cost(cost.macs * 5 // 2, cost.bytes * 2)
    turned = "" if layout is None else f" {layout}, fp32" if wide else f" {layout}"
    shape = f"B={batch} N={num_tokens} H={heads} D={dim}{' sized' if sized else ''}{turned}"
    return _differentiated("attention", shape, draw, forward, [], cost, backward)


def align_case(
    num_tokens: int, num_entities: int, width: int, dtype: torch.dtype = torch.bfloat16, *,
    noise: bool = False, tau: float = 0.5, backward: bool = False,
) -> Case:  # fmt: skip
    """Tokens and a corpus of one dtype."""
    seed = torch.zeros((), dtype=torch.int64) if noise else None

    def draw() -> tuple[Tensor, Tensor]:
        return _drawn(num_tokens, width, dtype=dtype), _drawn(num_entities, width, dtype=dtype)

    def forward(tokens: Tensor, entities: Tensor) -> tuple[Tensor]:
        return (align(tokens, entities, tau, seed)[1],)

    cost = align_cost(num_tokens, num_entities, width, dtype.itemsize)
    if backward:  # cosines, gradients of the weights, and of the tokens
        cost = Cost(cost.macs * 3, cost.bytes + num_tokens * width * dtype.itemsize)
    shape = f"M={num_tokens} K={num_entities} C={width}{' noise' if noise else ''}{f' tau={tau}' if tau != 0.5 else ''}"
    return _differentiated("align", shape, draw, forward, [], cost, backward)


def _differentiated(
    op: str,
    shape: str,
    draw: Callable[[], tuple[Any, ...]],
    forward: Callable[..., tuple[Tensor, ...]],
    weights: list[nn.Parameter],
    cost: Cost,
    backward: bool,
) -> Case:
    """A case of forward(*draw()), without gradients, or of its backward alone, to the first input and the weights."""
    if not backward:
        for weight in weights:
            weight.requires_grad_(False)
        return Case(op, shape, draw, lambda inputs: forward(*inputs), cost)

    def prepare() -> tuple[tuple[Tensor, ...], list[Tensor], list[Tensor]]:
        x, *others = draw()
        outputs = forward(x.requires_grad_(), *others)
        return outputs, [x, *weights], [_drawn(*out.shape, dtype=out.dtype) for out in outputs]

    def gradient(prepared: tuple[tuple[Tensor, ...], list[Tensor], list[Tensor]]) -> object:
        outputs, leaves, upstream = prepared
        return torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)

    return Case(f"{op} backward", shape, prepare, gradient, cost)


HEAD_DIMS = (32, 40, 64, 72, 80, 88, 96, 104, 128)
ROTARY_DIMS = (32, 64, 80, 128)
LAYOUTS: tuple[Layout, ...] = ("halves", "interleaved")
WIDTHS = (192, 384, 768, 1024, 1152, 1280, MAX_CHANNELS)  # ViT-Ti, S, B, L, So400m and H; the widest the kernels take
KEYS = ((12, 32), (12, 64), (16, 72), (16, 88), (16, 128), (1, 768), (1, MAX_CHANNELS))  # one head: a metric


def reachable() -> Iterator[Case]:
    """Every kernel in every configuration that a user can reach, at small batches."""
    for dtype in DTYPES.values():
        for heads, dim in KEYS:
            for batch, num_tokens in ((2, 197), (32, 197), (2, 1025)):
                yield match_case(batch, num_tokens, heads, dim, 8, dtype)
            for batch, num_tokens in ((2, 149), (32, 149), (2, 1025)):
                yield match_case(batch, num_tokens, heads, dim, num_tokens // 2, dtype, every=4)
        for backward in (False, True):
            for width in WIDTHS:
                for fused in (False, True):
                    yield merge_case(2, 197, 8, width, dtype, fused=fused, backward=backward)
            for dim in HEAD_DIMS:
                for sized in (False, True):
                    for batch in (2, 32):  # tiles of 64 and of 128 queries
                        yield attention_case(batch, 197, 12, dim, dtype, sized=sized, backward=backward)
            tables = (False, True) if dtype.itemsize == 2 else (True,)  # those of fp32 tokens are wide
            for dim, layout, batch, wide in itertools.product(ROTARY_DIMS, LAYOUTS, (2, 32), tables):
                yield attention_case(batch, 197, 12, dim, dtype, layout=layout, wide=wide, backward=backward)
            for noise in (False, True):
                yield align_case(101, 5000, 768, dtype, noise=noise, backward=backward)
        for noise in (False, True):
            yield align_case(101, 5000, 768, dtype, noise=noise, tau=0.01)  # too small for a bound
            for width in HELD_WIDTHS:
                yield align_case(101, 5000, width, dtype, noise=noise)
