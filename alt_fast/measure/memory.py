"""What a training step keeps in memory."""

from collections.abc import Callable
from typing import Any

import torch


def saved_bytes(step: Callable[[], Any]) -> int:
    """Bytes of what one call of `step` keeps for its backward pass, besides parameters, and leaves with a gradient."""
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        owner = tensor if tensor._base is None else tensor._base  # nn.Linear keeps a view of its weight
        if not isinstance(owner, torch.nn.Parameter) and not (owner.is_leaf and owner.requires_grad):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(seen.values())
