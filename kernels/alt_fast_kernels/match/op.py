"""`torch.ops.alt_fast.match`: the kernels as PyTorch sees them."""

import torch
from torch import Tensor

from alt_fast_kernels.library import fold_vmap, kernels_of, operator, register_vmap
from alt_fast_kernels.match.plan import MergePlan


def _empty(key: Tensor, r: int, protected: int, destinations: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    batch, num_tokens = key.shape[:2]
    slot = key.new_empty(batch, num_tokens, dtype=torch.int32)
    return slot, torch.empty_like(slot), slot.new_empty(batch, num_tokens - r + 1)


@operator("match(Tensor key, int r, int protected, Tensor? destinations=None) -> (Tensor, Tensor, Tensor)", _empty)
def match_op(key: Tensor, r: int, protected: int, destinations: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Match: key [B, N, H, D], 0 < r <= `max_r` -> slot, order [B, N], start [B, N - r + 1], int32.

    destinations: [D] tokens, int32 or int64, or None for those of odd index.
    """
    plan = MergePlan(*_empty(key, r, protected), key.shape[1] - r)
    for launch in kernels_of("match").match_launches(key, protected, destinations, plan):
        launch.run()
    return plan[:3]


register_vmap(match_op, fold_vmap(match_op, 1))
