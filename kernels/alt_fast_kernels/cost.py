"""What each op must at least do: multiply-accumulates, and bytes through device memory.

A MAC is one multiplication with one addition, two FLOPs. Bytes count every input once and every output once; what a
kernel passes to itself through the cache is not counted. Masks, norms and softmax are not counted as MACs.
"""

from dataclasses import dataclass

from alt_fast_kernels.match.plan import sides


@dataclass(frozen=True)
class Cost:
    """macs: of matmuls and weighted sums. bytes: read and written."""

    macs: int
    bytes: int


def match_cost(
    batch: int,
    num_tokens: int,
    num_heads: int,
    head_dim: int,
    protected: int,
    itemsize: int,
    num_listed: int | None = None,
) -> Cost:
    """Scores between sources and destinations; keys of `itemsize` bytes read, slot, order and start written.

    num_listed: how many destinations are listed; None for every other token.
    """
    _, _, num_sources, num_destinations = sides(num_tokens, protected, num_listed)
    read = batch * num_tokens * num_heads * head_dim * itemsize
    return Cost(batch * num_sources * num_destinations * head_dim, read + 3 * batch * num_tokens * 4)


def merge_cost(batch: int, num_tokens: int, r: int, channels: int, itemsize: int, residual: bool, norm: bool) -> Cost:
    """The weighted sum of the tokens; x (and residual) read, x' (and its norm) written."""
    tokens, slots = batch * num_tokens * channels, batch * (num_tokens - r) * channels
    return Cost(tokens, (tokens * (1 + residual) + slots * (1 + norm)) * itemsize)


def attention_cost(
    batch: int,
    num_q: int,
    num_k: int,
    num_heads: int,
    head_dim: int,
    itemsize: int,
    table_rows: int = 0,
    table_itemsize: int = 4,
) -> Cost:
    """q k^T and the weighted sum of v; backward, not counted here, is five such matmuls where these are two.

    table_rows: of each rotary table [B or 1, N, H or 1, D]; 0 without. table_itemsize: 4, or that of tokens of 16 bits.
    """
    channels = num_heads * head_dim
    moved = 2 * batch * (num_q + num_k) * channels * itemsize
    return Cost(2 * batch * num_q * num_k * channels, moved + 2 * table_rows * head_dim * table_itemsize)


def align_cost(num_tokens: int, num_entities: int, width: int, itemsize: int) -> Cost:
    """The hard choice: cosines of all tokens and entities, one entity read per token. A soft assignment doubles it."""
    vectors = 2 * num_tokens + num_entities
    return Cost(num_tokens * num_entities * width, vectors * width * itemsize + num_tokens * 8)
