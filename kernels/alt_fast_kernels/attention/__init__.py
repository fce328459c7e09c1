"""Proportional attention: softmax attention in which a token counts as often as the patches it stands for."""

from torch import Tensor

from alt_fast_kernels.attention.reference import attention_reference

__all__ = ["proportional_attention"]


def proportional_attention(
    q: Tensor, k: Tensor, v: Tensor, size: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(q k^T * scale + log size) v (ToMe, eq. 1).

    q, k, v: [B, N, H, D], any strides: views of a packed QKV projection. size: [B, N] > 0, or None for plain attention.
    scale: 1 / sqrt(D) by default. Returns [B, N, H * D].
    Raises ValueError on shapes that do not fit, and on a size that requires grad: sizes are counts.
    """
    if q.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:] or k.shape != v.shape:
        raise ValueError(
            "q, k, v must be [B, N, H, D] with the same B, H, D (k and v also N), got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if size is not None:
        if size.shape != k.shape[:2]:
            raise ValueError(f"size must be {tuple(k.shape[:2])} to fit k, got shape {tuple(size.shape)}")
        if size.requires_grad:
            raise ValueError("size must not require grad: token sizes are counts")
    return attention_reference(q, k, v, size, scale)
