"""Merging above a threshold: as many pairs as are alike, in every image and layer (DyMU, arXiv 2504.17040)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alt_fast.errors import ArgumentError
from alt_fast.methods.plans import check_padding, cosines, padded_plan
from alt_fast.tome.patch import Model, apply_patch
from alt_fast.tome.tokens import Attended, Tokens


@dataclass(frozen=True)
class Threshold:
    """A step that merges all pairs of ToMe's bipartite matching whose similarity is above a threshold.

    threshold: a cosine in [-1, 1]. Raises ArgumentError for any other.

    DyMU finds one threshold per layer, from how alike the tokens of many images are; here it is one for
    all layers, so that nothing is fitted. Means and attention count patches, as ToMe's do. Images keep different
    numbers of tokens: those with fewer are padded by tokens of size 0, so the host waits for the device, and a compiled
    graph breaks. Equal similarities: the lower index is the partner.
    """

    threshold: float

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, int | float) or not -1 <= self.threshold <= 1:
            raise ArgumentError(f"r of threshold merging is a cosine in [-1, 1], got {self.threshold!r}")

    def __call__(self, at: Attended) -> tuple[Tokens, Tensor]:
        """Merge what is more alike."""
        check_padding(at)
        if at.tokens.x.shape[1] - at.protected < 2:
            return at.keep()
        size = at.tokens.sizes()
        return at.merge(padded_plan(self._keeper(at, size > 0), size))

    @torch.no_grad()
    def _keeper(self, at: Attended, there: Tensor) -> Tensor:
        """The partner of every source that merges, [B, N]. there: [B, N], which tokens are not empty."""
        token = torch.arange(there.shape[1], device=there.device)
        source, target = (token[at.protected + (at.protected + odd) % 2 :: 2] for odd in range(2))
        similarity = cosines(at.key[:, source], at.key[:, target]).masked_fill(~there[:, None, target], -torch.inf)
        best, partner = similarity.max(-1)
        joins = (best > self.threshold) & there[:, source]
        return token.expand_as(there).index_copy(1, source, target[partner].where(joins, source))


def apply_threshold(model: Model, r: float) -> Model:
    """Make every tower in `model` merge pairs with a cosine above r; returns the model, patched in place."""
    return apply_patch(model, 0, step=Threshold(r))
