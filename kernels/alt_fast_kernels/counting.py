"""The ops' MACs for the two counters people use: fvcore's FlopCountAnalysis and PyTorch's FlopCounterMode.

Both report nothing for an op they do not know. Neither package is imported here.

    FlopCountAnalysis(model, images).set_op_handle(**FVCORE_HANDLES)
    FlopCounterMode(custom_mapping=flop_formulas())
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from alt_fast_kernels.cost import align_cost, attention_cost, match_cost

NORM_FLOPS = 5
"""Per element of an affine LayerNorm, as fvcore counts it."""


def _shape(value: Any) -> list[int]:
    """Of a tensor in a traced graph; [] for None."""
    return value.type().sizes() if value.isCompleteTensor() else []


def _match(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    protected: int = inputs[2].toIValue()
    return match_cost(*_shape(inputs[0]), protected, 0, next(iter(_shape(inputs[3])), None)).macs  # type: ignore[call-arg]


def _merge(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """The weighted sum is elementwise, which fvcore counts nowhere; the norm inside is counted as fvcore does."""
    return Counter({"layer_norm": NORM_FLOPS * _product(_shape(outputs[2]))})


def _packed(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    batch, num_tokens, _, num_heads, head_dim = _shape(inputs[0])
    return attention_cost(batch, num_tokens, num_tokens, num_heads, head_dim, 0).macs


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    batch, num_q, num_heads, head_dim = _shape(inputs[0])
    return attention_cost(batch, num_q, _shape(inputs[1])[1], num_heads, head_dim, 0).macs


def _sdpa(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    *batch, num_heads, num_q, head_dim = _shape(inputs[0])
    return attention_cost(_product(batch), num_q, _shape(inputs[1])[-2], num_heads, head_dim, 0).macs


def _align(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    num_entities, width = _shape(inputs[1])
    return align_cost(_shape(inputs[0])[0], num_entities, width, 0).macs


def _product(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


FVCORE_HANDLES: dict[str, Callable[[Sequence[Any], Sequence[Any]], int | Counter[str]]] = {
    "alt_fast::match": _match,
    "alt_fast::merge": _merge,
    "alt_fast::attention": _attention,
    "alt_fast::attention_packed": _packed,
    "alt_fast::align": _align,
    "aten::scaled_dot_product_attention": _sdpa,
}
"""For inference: fvcore traces forward passes. SDPA is here since fvcore counts it as 0."""


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs, two per MAC, of the forward ops by shape, as FlopCounterMode asks for them."""

    def match(
        key: Sequence[int], r: int, protected: int, destinations: Sequence[int] | None = None, *_: Any, **__: Any
    ) -> int:
        return 2 * match_cost(*key, protected, 0, None if destinations is None else destinations[0]).macs  # type: ignore[call-arg]

    def packed(qkv: Sequence[int], *_: Any, **__: Any) -> int:
        batch, num_tokens, _three, num_heads, head_dim = qkv
        return 2 * attention_cost(batch, num_tokens, num_tokens, num_heads, head_dim, 0).macs

    def attention(q: Sequence[int], k: Sequence[int], *_: Any, **__: Any) -> int:
        batch, num_q, num_heads, head_dim = q
        return 2 * attention_cost(batch, num_q, k[1], num_heads, head_dim, 0).macs

    def align(tokens: Sequence[int], entities: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * align_cost(tokens[0], *entities, 0).macs  # type: ignore[call-arg]

    ops = torch.ops.alt_fast
    return {ops.match: match, ops.attention_packed: packed, ops.attention: attention, ops.align: align}
