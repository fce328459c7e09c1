"""Executable specification of the size-weighted merge."""

from torch import Tensor


def merge_reference(x: Tensor, size: Tensor, slot: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Segment means of x weighted by size. Contract: `alt_fast_kernels.merge`."""
    index = slot.long()
    new_size = size.new_zeros(size.shape[0], num_slots).scatter_add(1, index, size)
    # Each token's share of its slot comes first, so that a token that merges with nothing passes through exactly.
    share = size / new_size.gather(1, index)
    weighted = x * share.unsqueeze(-1)  # in fp32 at least, as sizes are
    summed = weighted.new_zeros(x.shape[0], num_slots, x.shape[2])
    summed = summed.scatter_add(1, index.unsqueeze(-1).expand_as(weighted), weighted)
    return summed.to(x.dtype), new_size
