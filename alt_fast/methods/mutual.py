"""Mutual pairs: two tokens that are each other's nearest merge (MPM, Ravé et al., arXiv 2604.05718)."""

import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from alt_fast.errors import ArgumentError
from alt_fast.methods.plans import check_padding, cosines, padded_plan
from alt_fast.tome.patch import Model, apply_patch
from alt_fast.tome.tokens import Attended, Tokens


@dataclass(frozen=True)
class MutualPairs:
    """A step that merges all mutual pairs in some layers, and does nothing in the others.

    layers: how many of a tower's layers merge, evenly spread: the i-th, from 0, is (2 i + 1) n / (2 layers), rounded
    down, of n. Raises ArgumentError for a number that is none or below 0.

    Tokens are compared by their features, and a pair becomes its plain mean, as the paper's abstract has it; the paper
    puts the module before blocks. Here it stands where all methods do, between attention and MLP, and attention counts
    patches, as it has to, since images keep different numbers of tokens: those with fewer are padded by tokens of size
    0. So the host waits for the device, and a compiled graph breaks. Equal similarities: the lower index is nearer.
    """

    layers: int

    def __post_init__(self) -> None:
        try:
            operator.index(self.layers)
        except TypeError:
            raise ArgumentError(f"r of mutual pairs is a number of layers, an int, got {self.layers!r}") from None
        if self.layers < 0:
            raise ArgumentError(f"r of mutual pairs is a number of layers and must be >= 0, got {self.layers}")

    def __call__(self, at: Attended) -> tuple[Tokens, Tensor]:
        """Merge the pairs, if this is one of the layers."""
        num_tokens, layers = at.tokens.x.shape[1], min(self.layers, at.num_layers)
        chosen = [(2 * i + 1) * at.num_layers // (2 * layers) for i in range(layers)]
        check_padding(at)
        if at.layer not in chosen or num_tokens - at.protected < 2:
            return at.keep()
        size = at.tokens.sizes()
        return at.merge(padded_plan(_keeper(at, size > 0), size), (size > 0).to(size.dtype))


@torch.no_grad()
def _keeper(at: Attended, there: Tensor) -> Tensor:
    """The first token of every mutual pair, for its second: [B, N]. there: [B, N], which tokens are not empty."""
    token = torch.arange(there.shape[1], device=there.device).expand_as(there)
    free = (there & (token >= at.protected)).unsqueeze(1)
    cosine = cosines(at.tokens.x + at.branch).masked_fill(~free, -torch.inf)
    nearest = cosine.diagonal_scatter(cosine.new_full(there.shape, -torch.inf), dim1=1, dim2=2).max(-1).indices
    mutual = (nearest.gather(1, nearest) == token) & free[:, 0] & free[:, 0].gather(1, nearest)
    return nearest.where(mutual & (nearest < token), token)


def apply_mutual_pairs(model: Model, r: int) -> Model:
    """Make r layers of every tower in `model` merge mutual pairs; returns the model, patched in place."""
    return apply_patch(model, 0, step=MutualPairs(r))
