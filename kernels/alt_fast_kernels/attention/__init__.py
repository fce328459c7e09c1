"""Proportional attention: softmax attention in which a token counts as often as the patches it stands for."""

from torch import Tensor

from alt_fast_kernels.attention.op import attention_op, attention_packed_op
from alt_fast_kernels.attention.reference import attention_reference
from alt_fast_kernels.checks import check_device, check_size
from alt_fast_kernels.dispatch import takes_kernel, to_autocast_dtype

__all__ = ["proportional_attention", "proportional_attention_qkvpacked"]

MAX_HEAD_DIM = 128
"""Wider heads than the kernels' tiles run on PyTorch's attention."""


def proportional_attention(
    q: Tensor, k: Tensor, v: Tensor, size: Tensor | None = None, scale: float | None = None, dropout_p: float = 0.0
) -> Tensor:
    """softmax(q k^T * scale + log size) v (ToMe, eq. 1).

    q: [B, N, H, D]. k, v: [B, M, H, D]. Any strides over B, N, H: views of a packed QKV projection are read in place.
    size: [B, M] fp32 > 0, or None for plain attention. scale: 1 / sqrt(D) by default.
    dropout_p: drops attention weights; with p > 0 or D > 128 PyTorch's attention runs, on every device.
    Returns [B, N, H * D] in q's dtype (inside autocast, in autocast's).
    Raises ValueError on shapes, dtypes or devices that do not fit, on sizes <= 0 and on a size that requires grad
    (sizes are counts).
    """
    if q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:] or k.shape != v.shape:
        raise ValueError(
            "q, k, v must be [B, N, H, D] with the same B, H, D (k and v also N), got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    check_device("k", k, q)
    check_device("v", v, q)
    if size is not None:
        check_size(size, k)
    q, k, v = to_autocast_dtype(q, k, v)
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v must have one dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if takes_kernel(q) and q.shape[-1] <= MAX_HEAD_DIM and dropout_p == 0:
        return attention_op(q, k, v, size, scale)[0]
    return attention_reference(q, k, v, size, scale, dropout_p)


def proportional_attention_qkvpacked(
    qkv: Tensor, size: Tensor | None = None, scale: float | None = None, dropout_p: float = 0.0
) -> Tensor:
    """`proportional_attention` of q, k, v = qkv.unbind(2), qkv [B, N, 3, H, D]: the gradient stays packed, uncopied."""
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"qkv must be [B, N, 3, H, D], got shape {tuple(qkv.shape)}")
    if takes_kernel(qkv) and qkv.shape[-1] <= MAX_HEAD_DIM and dropout_p == 0:
        if size is not None:
            check_size(size, qkv)
        (qkv,) = to_autocast_dtype(qkv)
        return attention_packed_op(qkv, size, qkv.shape[-1] ** -0.5 if scale is None else scale)[0]
    q, k, v = qkv.unbind(2)
    return proportional_attention(q, k, v, size, scale, dropout_p)
