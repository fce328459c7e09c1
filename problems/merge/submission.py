"""The one to beat: alt_fast_kernels, one launch on a GPU that reads and writes the token stream once."""

from torch import Tensor, nn

from alt_fast_kernels import MergePlan, merge


def custom_kernel(inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return merged tokens, their sizes and their LayerNorm."""
    x, branch, size, slot, order, start, weight, bias = inputs
    norm = nn.LayerNorm(x.shape[2], device="meta")
    norm.weight, norm.bias = (nn.Parameter(part, requires_grad=False) for part in (weight, bias))
    return merge(x, size, MergePlan(slot, order, start, start.shape[1] - 1), branch, norm=norm)
