"""The one to beat: alt_fast_kernels, which on a GPU never holds the assignment."""

from torch import Tensor

from alt_fast_kernels import align


def custom_kernel(inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return index and entities[index]."""
    return align(*inputs)
