"""`torch.ops.alt_fast.match`: the kernels as PyTorch sees them."""

import torch
from torch import Tensor

from alt_fast_kernels.dispatch import fold_vmap
from alt_fast_kernels.match.plan import MergePlan


@torch.library.custom_op("alt_fast::match", mutates_args=())
def match_op(key: Tensor, r: int, protected: int) -> tuple[Tensor, Tensor, Tensor]:
    """Match: key [B, N, H, D], 0 < r <= (N - protected) // 2 -> slot, order [B, N], start [B, N - r + 1], int32."""
    from alt_fast_kernels.match.triton import match_launches

    plan = _empty_plan(key, r)
    for launch in match_launches(key, protected, plan):
        launch.run()
    return plan[:3]


@match_op.register_fake
def _(key: Tensor, r: int, protected: int) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_plan(key, r)[:3]


def _empty_plan(key: Tensor, r: int) -> MergePlan:
    batch, num_tokens = key.shape[:2]
    slot = torch.empty(batch, num_tokens, dtype=torch.int32, device=key.device)
    return MergePlan(slot, torch.empty_like(slot), slot.new_empty(batch, num_tokens - r + 1), num_tokens - r)


match_op.register_vmap(fold_vmap(match_op, 1))
