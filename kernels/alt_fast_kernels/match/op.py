"""`torch.ops.alt_fast.match`: the kernel as PyTorch sees it."""

import torch
from torch import Tensor

from alt_fast_kernels.dispatch import fold_vmap


@torch.library.custom_op("alt_fast::match", mutates_args=())
def match_op(key: Tensor, r: int, protected: int) -> tuple[Tensor, Tensor]:
    """key [B, N, H, D], 0 < r <= (N - protected) // 2 -> slot and order, both [B, N] int32."""
    from alt_fast_kernels.match.triton import match_launch

    slot, order = _empty_plan(key)
    match_launch(key, r, protected, slot, order).run()
    return slot, order


@match_op.register_fake
def _(key: Tensor, r: int, protected: int) -> tuple[Tensor, Tensor]:
    return _empty_plan(key)


def _empty_plan(key: Tensor) -> tuple[Tensor, Tensor]:
    slot = torch.empty(key.shape[:2], dtype=torch.int32, device=key.device)
    return slot, torch.empty_like(slot)


match_op.register_vmap(fold_vmap(match_op, 1))
