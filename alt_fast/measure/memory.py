"""What a training step keeps in memory."""

from collections.abc import Callable
from typing import Any

import torch


def saved_bytes(step: Callable[[], Any]) -> int:
    """Bytes of what one call of `step` keeps for its backward pass, besides parameters."""
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_leaf or not tensor.requires_grad:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(seen.values())
