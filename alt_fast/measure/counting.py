"""Multiply-accumulates of whatever runs, by a counter that refuses what it does not know."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from alt_fast.errors import AltFastError
from alt_fast_kernels.counting import flop_formulas

UNCOUNTED = {
    "shapes and types, moves at most": """Int ScalarImplicit size view reshape flatten unflatten expand expand_as
        permute transpose numpy_T select slice unbind chunk squeeze unsqueeze contiguous to _to_copy _unsafe_view roll
        flip""",
    "fills and copies": """empty ones zeros_like arange cat stack embedding gather index full lift_fresh clone copy_
        constant_pad_nd repeat index_select new_empty new_zeros new_ones zeros ones_like full_like empty_like fill_
        scalar_tensor zero_ index_put index_put_ scatter_ select_scatter slice_scatter empty_strided
        new_empty_strided new_full diagonal_scatter index_copy index_copy_ index_fill masked_scatter as_strided_scatter
        take select_backward slice_backward""",
    "choices and plans of matching, no products": """argmax argsort sort max scatter split isnan eq masked_fill round
        argmin min topk amax amin nonzero masked_select _local_scalar_dense any all cumsum searchsorted scatter_reduce
        scatter_reduce_ one_hot bucketize unique_dim _unique2 unique_consecutive bincount histc count_nonzero kthvalue
        cummax cummin aminmax msort masked_fill_ triu tril""",
    "random numbers": """rand randn randint rand_like randn_like randint_like randperm bernoulli bernoulli_ uniform_
        normal normal_ multinomial exponential_""",
    "integers": "floor_divide remainder",
    "elementwise: residuals, biases, scales, sizes": "add sub mul div exp log clamp_min",
    "rotary positions: turns of queries and keys": "neg cos sin hypot clamp",
    "rotary positions: whole turns of a grid, once": "atan2 abs diff gt lt __and__ where detach",
    "merging: r weighted rows per image and layer, 0.001 % of a block": """scatter_add scatter_add_ index_add
        index_add_""",
    "activations": """gelu sigmoid softmax dropout _softmax _softmax_backward_data native_dropout _log_softmax
        _log_softmax_backward_data _safe_softmax""",
    "means, sums and unit lengths": """mean linalg_vector_norm sum norm var var_mean native_layer_norm
        native_layer_norm_backward native_group_norm native_batch_norm _native_batch_norm_legit_no_training
        _native_batch_norm_legit avg_pool2d avg_pool2d_backward _adaptive_avg_pool2d adaptive_avg_pool2d prod logsumexp
        max_pool2d_with_indices""",
    "resizing pictures and positions": """upsample_bilinear2d upsample_bicubic2d _upsample_bicubic2d_aa
        _upsample_bilinear2d_aa""",
}
"""aten ops that no counter counts, by the reason, as fvcore and the dispatcher name them."""

_FREE = frozenset(f"aten::{name}" for names in UNCOUNTED.values() for name in names.split())


class UncountedError(AltFastError, RuntimeError):
    """A model ran an op that nobody counts."""


class _Seen(TorchDispatchMode):
    """Keeps the names of ops that the counter around which it stands has no formula for."""

    def __init__(self, counted: set[Any]) -> None:
        super().__init__()
        self.counted, self.unknown = counted, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        name = packet._qualified_op_name
        free = func.is_view or torch.Tag.pointwise in func.tags or name in _FREE
        if packet not in self.counted and not free and not name.startswith(("prim::", "profiler::")):
            self.unknown.add(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """Count MACs of what runs inside; yields a function that says how many there were so far.

    Counted are matmuls and convolutions, of attention its two products; forward and backward. Norms, softmax and
    whatever is elementwise count nothing, as everywhere in this field. Raises UncountedError, at the end, naming every
    op that has no formula and is not in `UNCOUNTED` either.
    """
    counter = FlopCounterMode(display=False, custom_mapping=flop_formulas())
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # nn.MultiheadAttention as a single op would have no formula
    try:
        with _Seen(set(counter.flop_registry)) as seen, counter, sdpa_kernel(SDPBackend.MATH):
            yield lambda: counter.get_total_flops() // 2
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    if seen.unknown:
        raise UncountedError(f"neither counted nor known to need no count: {', '.join(sorted(seen.unknown))}")


def count_macs(run: Callable[[], object]) -> int:
    """MACs of one call of `run`, as `counting` counts them, and with its errors."""
    with counting() as so_far:
        run()
    return so_far()


def inference_macs(model: nn.Module, images: Tensor) -> int:
    """MACs of a forward pass, which is run."""
    frozen = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        return count_macs(lambda: frozen(images))


def dispatcher_count(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """`count_macs` of a model, on shapes only."""
    model = copy.deepcopy(model).requires_grad_(False)  # the counter's module tracker trips over parameters there
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        return count_macs(lambda: model(*inputs))
