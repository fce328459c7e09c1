"""What PyTorch itself launches around our kernels: an op's norms, reductions, products and look-ups."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MATMULS = (torch.ops.aten.mm.default, torch.ops.aten.matmul.default)


@dataclass(frozen=True)
class TorchCall:
    """One kernel of PyTorch's. bytes: of every tensor that it reads and writes. flops: of a matrix product, else 0."""

    name: str
    bytes: int
    flops: int = 0


class Around(TorchDispatchMode):
    """Collect in `calls` what PyTorch launches inside; matrix products are not computed, their results are unfilled."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[TorchCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "alt_fast":  # ours are looked into
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        if func in MATMULS:
            a, b = args  # [M, K] and [K, N]: the only ones that our ops ask for
            out = a.new_empty(len(a), b.shape[1])
            self.calls.append(TorchCall("matmul", _bytes((a, b, out)), 2 * a.numel() * b.shape[1]))
            return out
        out = func(*args, **kwargs)
        if _launches(func, (args, kwargs), out) and (moved := _bytes((args, kwargs, out))):
            self.calls.append(TorchCall(func.overloadpacket.__name__, moved))
        return out


def _launches(func: Any, given: Any, out: Any) -> bool:
    """Return whether an operator runs a kernel: it makes no view and fills what it allocates.

    Some make a view where they can, and else a copy (`to`, `contiguous`, `flatten`). `zero_` is what `launch.recording`
    fills indices with; no op of ours calls it.
    """
    may_view = any(x.alias_info is not None and not x.alias_info.is_write for x in func._schema.returns)
    is_view = may_view and _places(out) <= _places(given)
    return not is_view and "empty" not in func.overloadpacket.__name__ and func is not torch.ops.aten.zero_.default


def _places(values: Any) -> set[int]:
    """Where the memory of all tensors among them begins."""
    return {x.untyped_storage().data_ptr() for x in tree_leaves(values) if isinstance(x, Tensor)}


def _bytes(values: Any) -> int:
    """Of all tensors among them; what is broadcast counts as often as it lies in memory."""
    tensors = [x for x in tree_leaves(values) if isinstance(x, Tensor)]
    return sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in tensors)
