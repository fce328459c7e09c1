"""Tiles of tokens in registers: read, written, and turned by their positions on the way.

A turned tile is kept in two parts [BLOCK, BLOCK_D / 2], over which products sum, so that they need not be joined:
the first and the second channels of all pairs, or, for "interleaved_16", the lower and the upper channels of the head.
Tables are fp32 or have the tokens' own 16 bits ("_16"). Tokens are turned in the tables' dtype, two channels of 16 bits
at once, and gradients are turned back in fp32.
"""

import triton
import triton.language as tl


@triton.jit
def owned(num_rows, num_heads, BLOCK_M: tl.constexpr):
    """The image, head and rows [BLOCK_M] that this program owns."""
    tiles = tl.cdiv(num_rows, BLOCK_M)
    image = (tl.program_id(0) // (tiles * num_heads)).to(tl.int64)
    head = ((tl.program_id(0) // tiles) % num_heads).to(tl.int64)
    return image, head, (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)


@triton.jit
def load_rows(x, n, count, stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """A tile [BLOCK, BLOCK_D] of one head, zero outside of it. Without MASKED all rows n are inside."""
    d = tl.arange(0, BLOCK_D)
    at = x + n[:, None].to(tl.int64) * stride + d[None, :]
    if MASKED:
        return tl.load(at, mask=(n[:, None] < count) & (d[None, :] < HEAD_DIM), other=0.0)
    if HEAD_DIM < BLOCK_D:
        return tl.load(at, mask=(d < HEAD_DIM)[None, :], other=0.0)
    return tl.load(at)


@triton.jit
def store_rows(x, tile, n, count, stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The counterpart of `load_rows`, in the dtype of x."""
    d = tl.arange(0, BLOCK_D)
    at = x + n[:, None].to(tl.int64) * stride + d[None, :]
    tl.store(at, tile.to(x.dtype.element_ty), mask=(n[:, None] < count) & (d[None, :] < HEAD_DIM))


@triton.jit
def open_keys(size, num_k, HAS_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """How many keys lie in full tiles that need no mask: none, where any size is 0."""
    full = num_k // BLOCK_N * BLOCK_N
    if HAS_SIZE:
        least = tl.full([256], 1.0, tl.float32)
        for n0 in range(0, num_k, 256):
            n = n0 + tl.arange(0, 256)
            least = tl.minimum(least, tl.load(size + n, mask=n < num_k, other=1.0))
        full = tl.where(tl.min(least, 0) > 0, full, 0)
    return full


@triton.jit
def wide_rows(count, BLOCK_N: tl.constexpr, NARROW: tl.constexpr):
    """How many of `count` rows are streamed BLOCK_N at a time: all, unless NARROW at a time serve the last few better.

    That is where at most half a tile is left behind the full ones. NARROW 0: never.
    """
    if NARROW == 0:
        return count
    full = count // BLOCK_N * BLOCK_N
    return tl.where(count - full > BLOCK_N // 2, count, full)


@triton.jit
def _middle(ROTARY: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Channels of the first of two parts that lie side by side in memory."""
    return min(HEAD_DIM, BLOCK_D // 2) if ROTARY == "interleaved_16" else HEAD_DIM // 2


@triton.jit
def _parts(x, n, stride, ROTARY: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows n of a head in two parts."""
    if ROTARY == "interleaved":
        return _pairs(load_rows(x, n, 0, stride, HEAD_DIM, BLOCK_D, False))
    else:  # noqa: RET505 (a branch of the compiler)
        middle: tl.constexpr = _middle(ROTARY, HEAD_DIM, BLOCK_D)
        first = load_rows(x, n, 0, stride, middle, BLOCK_D // 2, False)
        return first, load_rows(x + middle, n, 0, stride, HEAD_DIM - middle, BLOCK_D // 2, False)


@triton.jit
def _pairs(x):
    """The first and the second channels of pairs of neighbours."""
    return tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))


@triton.jit
def _neighbours(first, second):
    """What `_pairs` took apart."""
    return tl.reshape(tl.join(first, second), (first.shape[0], 2 * first.shape[1]))


@triton.jit
def _turned_neighbours(x, cos, sin):
    """x cos + partner(x) sin, where pairs are neighbours."""
    first, second = _pairs(x)
    return x * cos + _neighbours(-second, first) * sin


@triton.jit
def _turned(x, cos, sin, n, stride, table_n, ROTARY: tl.constexpr, HEAD_DIM: tl.constexpr,
            BLOCK_D: tl.constexpr):  # fmt: skip
    """x cos + partner(x) sin of rows n, in parts of x's dtype, computed in the tables' dtype."""
    first, second = _parts(x, n, stride, ROTARY, HEAD_DIM, BLOCK_D)
    cos_1, cos_2 = _parts(cos, n, table_n, ROTARY, HEAD_DIM, BLOCK_D)
    sin_1, sin_2 = _parts(sin, n, table_n, ROTARY, HEAD_DIM, BLOCK_D)
    if ROTARY == "interleaved_16":
        return _turned_neighbours(first, cos_1, sin_1), _turned_neighbours(second, cos_2, sin_2)
    else:  # noqa: RET505
        a, b = first.to(cos_1.dtype), second.to(cos_1.dtype)
        return (a * cos_1 - b * sin_1).to(first.dtype), (b * cos_2 + a * sin_2).to(first.dtype)


@triton.jit
def load_tokens(x, cos, sin, n, count, stride, table_n, ROTARY: tl.constexpr, HEAD_DIM: tl.constexpr,
                BLOCK_D: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """A tile of queries or keys: one part, or two, turned, of which rows beyond the last repeat it.

    They need no masks: whoever reads them gives such queries and keys no weight.
    """
    if ROTARY == "none":
        return (load_rows(x, n, count, stride, HEAD_DIM, BLOCK_D, MASKED),)
    else:  # noqa: RET505
        inside = tl.minimum(n, count - 1) if MASKED else n
        return _turned(x, cos, sin, inside, stride, table_n, ROTARY, HEAD_DIM, BLOCK_D)


@triton.jit
def empty_sum(BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, ROTARY: tl.constexpr):
    """Zeros of the shape of `load_tokens`' result, for the gradient of it."""
    if ROTARY == "none":
        return (tl.zeros([BLOCK, BLOCK_D], tl.float32),)
    else:  # noqa: RET505
        return tl.zeros([BLOCK, BLOCK_D // 2], tl.float32), tl.zeros([BLOCK, BLOCK_D // 2], tl.float32)


@triton.jit
def products(a, b, ROTARY: tl.constexpr):
    """a b^T of tiles of tokens."""
    sums = tl.dot(a[0], tl.trans(b[0]), input_precision="ieee")
    if ROTARY != "none":
        sums = tl.dot(a[1], tl.trans(b[1]), sums, input_precision="ieee")
    return sums


@triton.jit
def added(weights, tokens, sums, ROTARY: tl.constexpr):
    """sums + weights tokens, in as many parts as the tokens have."""
    first = tl.dot(weights, tokens[0], sums[0], input_precision="ieee")
    if ROTARY == "none":
        return (first,)
    else:  # noqa: RET505
        return first, tl.dot(weights, tokens[1], sums[1], input_precision="ieee")


@triton.jit
def _neighbours_turned_back(grad, cos, sin):
    """The gradient of x, by that of what `_turned_neighbours` returns."""
    first, second = _pairs(grad * sin)
    return grad * cos + _neighbours(second, -first)


@triton.jit
def store_gradient(x, grad, factor, cos, sin, n, count, stride, table_n, ROTARY: tl.constexpr,
                   HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Store the gradient of what `load_tokens` read: factor * grad, which is of what it returned, turned back."""
    if ROTARY == "none":
        store_rows(x, grad[0] * factor, n, count, stride, HEAD_DIM, BLOCK_D)
    else:
        inside = tl.minimum(n, count - 1)
        cos_1, cos_2 = _parts(cos, inside, table_n, ROTARY, HEAD_DIM, BLOCK_D)
        sin_1, sin_2 = _parts(sin, inside, table_n, ROTARY, HEAD_DIM, BLOCK_D)
        a, b = grad[0] * factor, grad[1] * factor
        if ROTARY == "interleaved_16":
            first, second = _neighbours_turned_back(a, cos_1, sin_1), _neighbours_turned_back(b, cos_2, sin_2)
        else:
            first, second = a * cos_1 + b * sin_2, b * cos_2 - a * sin_1
        if ROTARY == "interleaved":
            store_rows(x, _neighbours(first, second), n, count, stride, HEAD_DIM, BLOCK_D)
        else:
            middle: tl.constexpr = _middle(ROTARY, HEAD_DIM, BLOCK_D)
            store_rows(x, first, n, count, stride, middle, BLOCK_D // 2)
            store_rows(x + middle, second, n, count, stride, HEAD_DIM - middle, BLOCK_D // 2)
