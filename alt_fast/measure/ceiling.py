"""The ceiling of a machine: tokens dropped where a method removes them, nothing chosen and nothing merged."""

from dataclasses import replace

from torch import Tensor

from alt_fast.tome.tokens import Attended, Tokens
from alt_fast_kernels import max_r


def drop_step(at: Attended) -> tuple[Tokens, Tensor]:
    """Drop the last tokens, as many as `merge_step` would merge into every k-th one, the destinations."""
    assert isinstance(at.destinations, int)
    num_tokens = at.tokens.x.shape[1]
    return drop_to(at, num_tokens - min(at.reduction, max_r(num_tokens, at.protected, at.destinations)))


def drop_to(at: Attended, kept: int) -> tuple[Tokens, Tensor]:
    """Drop all but the first `kept` tokens."""
    tokens = at.tokens
    x = (tokens.x + at.branch)[:, :kept]
    turns = None if tokens.turns is None else tokens.turns._replace(table=tokens.turns.table[:, :kept])
    return replace(tokens, x=x, turns=turns), x if at.norm is None else at.norm(x)
