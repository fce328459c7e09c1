"""PiToMe: tokens with many alike merge, others are protected (Tran et al., arXiv 2405.16148)."""

import torch
from torch import Tensor

from alt_fast.methods.plans import cosines, plan_to, removable
from alt_fast.tome.tokens import Attended, Tokens


def pitome_step(at: Attended) -> tuple[Tokens, Tensor]:
    """Merge among the 2 r tokens of highest energy: of these, by falling energy, every other one into the rest.

    r: tokens to remove, at most half of those that are not protected. Energy (eq. 4): the mean over all tokens of
    f(c), where c is the cosine of two keys; f(c) = c from the margin m on, and exp(c - m) - 1 below. m falls with
    depth: 0.9 (1 - layer / layers). Of the chosen tokens the 1st, 3rd, ... merge, each into the most similar of the
    2nd, 4th, ...; means and attention count patches, as ToMe's do. Of equal energies the lower index comes first, of
    partners as similar the one of higher energy.

    The authors' code differs from the paper: f(c) = c - m from the margin on, m from 0.75, and in the first half of the
    layers no token is protected. This is the paper's.
    """
    r = removable(at)
    if r == 0:
        return at.keep()
    return at.merge(plan_to(_keeper(at, r), at.tokens.x.shape[1] - r))


@torch.no_grad()
def _keeper(at: Attended, r: int) -> Tensor:
    cosine = cosines(at.key[:, at.protected :])
    margin = 0.9 * (1 - at.layer / at.num_layers)
    energy = cosine.where(cosine >= margin, (cosine - margin).expm1()).mean(-1)
    chosen = energy.argsort(dim=1, descending=True, stable=True)[:, : 2 * r]
    source, target = chosen[:, ::2], chosen[:, 1::2]
    rows = cosine.gather(1, source.unsqueeze(-1).expand(-1, -1, cosine.shape[2]))
    nearest = rows.gather(2, target.unsqueeze(1).expand(-1, r, -1)).max(-1).indices
    token = torch.arange(at.key.shape[1], device=at.key.device).expand(len(at.key), -1)
    return token.scatter(1, at.protected + source, at.protected + target.gather(1, nearest))
