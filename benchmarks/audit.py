"""GFLOPs and parameters of ALT, counted four ways that must agree to the MAC, beside what the paper prints.

The counts: fvcore on the PyTorch references, fvcore with our handles on the fused ops, PyTorch's FlopCounterMode with
attention as matrices, and the closed form. The papers' GFLOPs are 10^9 MACs; fvcore adds five per normalised element.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from alt_fast.corpus import Corpus, Entity
from alt_fast.measure.counting import UNCOUNTED, UncountedError, dispatcher_count
from alt_fast.model.alt import ALT
from alt_fast.model.config import PRESETS, ModelConfig
from alt_fast_kernels import use_backend
from alt_fast_kernels.align.op import align_op
from alt_fast_kernels.align.reference import align_reference
from alt_fast_kernels.attention.op import attention_op, attention_packed_op
from alt_fast_kernels.attention.reference import attention_reference
from alt_fast_kernels.attention.rotary import Rotary, rotate
from alt_fast_kernels.counting import FVCORE_HANDLES
from alt_fast_kernels.match.op import match_op
from alt_fast_kernels.match.reference import match_reference
from alt_fast_kernels.merge.op import merge_op
from alt_fast_kernels.merge.reference import layer_norm_reference, merge_reference
from benchmarks.closed_form import VITS, ALTShape, alt_macs
from benchmarks.paper import Published

ENTITIES = 5000
"""K, which the paper does not print. An assumption, the same in every row; each row also says which K would make
it equal the paper."""

CLASSES = 400


def fvcore_count(model: nn.Module, inputs: tuple[Tensor, ...]) -> Counter[str]:
    """MACs by operator (layer_norm: FLOPs), executed once. Raises UncountedError for an op that nobody counts."""
    analysis = FlopCountAnalysis(model, inputs).set_op_handle(**FVCORE_HANDLES)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis._ignored_ops = set()  # fvcore skips some by default; here every op is named
    with torch.no_grad():
        counts = Counter({op: int(count) for op, count in analysis.by_operator().items()})
    unknown = sorted(
        set(analysis.unsupported_ops()) - {f"aten::{name}" for names in UNCOUNTED.values() for name in names.split()}
    )
    if unknown:
        raise UncountedError(f"neither counted nor known to need no count: {', '.join(unknown)}")
    return counts


def _merge(
    x: Tensor,
    residual: Tensor | None,
    size: Tensor,
    order: Tensor,
    start: Tensor,
    num_slots: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    normed_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = x if residual is None else x + residual
    rank = torch.arange(order.shape[1] - num_slots, dtype=torch.int32).expand(len(order), -1).contiguous()
    joined = torch.searchsorted(start.contiguous(), rank, right=True) - 1
    kept = torch.arange(num_slots).expand(len(order), -1)
    slot = torch.zeros_like(order, dtype=torch.int64).scatter(1, order.long(), torch.cat([kept, joined], 1))
    out, new_size = merge_reference(x, size, slot, order, num_slots)
    normed = (
        layer_norm_reference(out, weight, bias, eps) if weight is not None and bias is not None else out.new_empty(0)
    )
    return out, new_size, normed, new_size.new_empty(0)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float,
    cos: Tensor | None = None, sin: Tensor | None = None, interleaved: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if cos is not None and sin is not None:
        rotary = Rotary(cos, sin, interleaved)
        q, k = rotate(q, rotary), rotate(k, rotary)
    return attention_reference(q, k, v, size, scale), q.new_empty(0)


def _attention_packed(
    qkv: Tensor, size: Tensor | None, scale: float,
    cos: Tensor | None = None, sin: Tensor | None = None, interleaved: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q, k, v = qkv.unbind(2)
    return _attention(q, k, v, size, scale, cos, sin, interleaved)


def _align(
    tokens: Tensor, entities: Tensor, tau: float, seed: Tensor | None, period: int
) -> tuple[Tensor, Tensor, Tensor]:
    index, aligned = align_reference(tokens, entities, tau, seed)
    return aligned, index, tokens.new_empty(0)


@contextmanager
def fused_ops_on_cpu() -> Iterator[None]:
    """Take the fused ops, which a GPU runs by kernels, and compute each as its reference does."""
    stand_ins: dict[Any, Any] = {
        match_op: match_reference,
        merge_op: _merge,
        attention_op: _attention,
        attention_packed_op: _attention_packed,
        align_op: _align,
    }
    with torch.library._scoped_library("alt_fast", "IMPL") as library, use_backend("triton"):
        for op, stand_in in stand_ins.items():
            library.impl(op._schema.name, stand_in, "CPU")
        yield


@dataclass(frozen=True)
class Audit:
    """Counts of one row. macs: by counter, of one view; norms: FLOPs by counter that counts norms.

    parts: the closed form's, of one view. parameters, tunable: without the text branch.
    """

    macs: dict[str, int]
    norms: dict[str, int]
    parts: dict[str, int]
    parameters: int
    tunable: int

    def check(self) -> None:
        """Raise AssertionError unless all counters agree."""
        for name, counts in (("MACs", self.macs), ("FLOPs of norms", self.norms)):
            if len(set(counts.values())) > 1:
                raise AssertionError(f"{name} differ: {counts}")

    @property
    def gflops(self) -> float:
        """As fvcore and the papers say it: 10^9 MACs, with five per normalised element, of one view."""
        return (next(iter(self.macs.values())) + next(iter(self.norms.values()))) * 1e-9


def make_model(config: ModelConfig) -> ALT:
    """A model with random weights; its corpus is random vectors, which change no count."""
    corpus = Corpus(tuple(Entity(f"entity {i}", "", "object") for i in range(ENTITIES)))
    model = ALT(config, corpus if config.query == "entities" else None).eval()
    nn.init.normal_(model.alignment.entities)
    return model


def shape_of(config: ModelConfig) -> ALTShape:
    """What the closed form needs of a configuration."""
    vit, joint = {
        "ViT-B-16": (VITS["vit_base_patch16_224"], 512),
        "ViT-L-14": (VITS["vit_large_patch14_224"], 768),
    }[config.backbone]
    entities = ENTITIES if config.query == "entities" else 0
    assert isinstance(config.r, int)
    return ALTShape(vit, config.frames, config.r, joint, config.depth, CLASSES, entities, config.regions, config.tuning)


def count_alt(model: ALT, shape: ALTShape) -> Audit:
    """All counts of one view through `model`, whose closed form is that of `shape`."""
    inputs = (torch.randn(1, shape.frames, 3, *model.image_size), torch.randn(shape.classes, shape.joint))
    reference = fvcore_count(model, inputs)
    with fused_ops_on_cpu():
        fused = fvcore_count(model, inputs)
    parts = alt_macs(shape)
    norms = {
        "fvcore, references": reference.pop("layer_norm"),
        "fvcore, fused": fused.pop("layer_norm"),
        "closed form": parts["norms"],
    }
    macs = {
        "fvcore, references": sum(reference.values()),
        "fvcore, fused": sum(fused.values()),
        "FlopCounterMode": dispatcher_count(model, inputs),
        "closed form": sum(parts.values()) - parts["norms"],
    }
    return Audit(macs, norms, parts, model.count_parameters(), model.count_parameters(trainable=True))


def audit(row: Published) -> Audit:
    """Count one row of the paper; the caller checks that the counts agree."""
    return audit_config(replace(PRESETS[row.model], **row.options))


@cache
def audit_config(config: ModelConfig) -> Audit:
    """Count a model once: it may stand in several tables."""
    return count_alt(make_model(config), shape_of(config))


def describe(row: Published, found: Audit) -> dict[str, Any]:
    """A result row: what was counted of all views, what the paper prints, and the differences in per cent."""
    gflops = found.gflops * row.views
    result = {
        "audit": row.table,
        "row": row.row,
        "model": row.model,
        "options": row.options,
        "views": row.views,
        "entities": ENTITIES if found.parts.get("alignment") else None,
        "macs": found.macs,
        "norm_flops": found.norms,
        "parts": found.parts,
        "gflops": gflops,
        "parameters": found.parameters,
        "tunable": found.tunable,
        "paper": {"gflops": row.gflops, "params": row.params, "tunable": row.tunable, "top1": row.top1},
        "delta_percent": {
            "gflops": _delta(gflops, row.gflops),
            "params": _delta(found.parameters * 1e-6, row.params),
            "tunable": _delta(found.tunable * 1e-6, row.tunable),
        },
    }
    if row.gflops is not None and found.parts.get("alignment") and row.options.get("regions", True):
        per_entity = found.parts["alignment"] / ENTITIES * 1e-9
        result["entities_asked_for"] = round(ENTITIES + (row.gflops / row.views - found.gflops) / per_entity)
    return result


def _delta(found: float, printed: float | None) -> float | None:
    return None if printed is None else 100 * (found / printed - 1)
