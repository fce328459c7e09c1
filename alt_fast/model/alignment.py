"""Region tokens x text entities -> one aligned query per frame (paper, eq. 4 to 6)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt_fast.model.config import ModelConfig
from alt_fast_kernels import align


class MLP(nn.Sequential):
    """Linear to four times the width, GELU, linear back."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def certainty(entities: Tensor, tau: float) -> float:
    """Return the probability that eq. 4's noisy choice for a token equal to an entity is this entity, their mean.

    entities: [K, d].
    """
    unit = F.normalize(entities.float(), dim=-1)
    rows = torch.arange(0, len(unit), -(-len(unit) // 1000), device=unit.device)  # a thousand tell
    choice = (unit[rows] @ unit.T / tau).softmax(-1)
    return choice.gather(1, rows[:, None]).mean().item()


class Alignment(nn.Module):
    """One query per frame. `entities` [K, d] is a buffer: text embeddings are fixed (paper, appendix B)."""

    entities: Tensor

    def __init__(self, entities: Tensor, config: ModelConfig) -> None:
        super().__init__()
        width = entities.shape[1]
        self.source, self.regions, self.pooling = config.query, config.regions, config.pool
        self.tau, self.hard = config.tau, config.hard
        self.register_buffer("entities", entities)
        self.norm = nn.LayerNorm(width) if config.query_norm else nn.Identity()
        self.mlp = MLP(width)
        if self.source == "learned":
            self.learned = nn.Parameter(torch.randn(config.frames, width) * width**-0.5)
        if self.pooling == "attention":
            self.attention = nn.Linear(width, 1).requires_grad_(self.source == "entities")  # others pool nothing

    def forward(
        self, tokens: Tensor, size: Tensor, seed: Tensor | None, tau: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """tokens: [B, T, N', d], class token first. size: [B, T, N']. seed: draws eq. 4's noise, None for none.

        tau: temperature, by default the configuration's.

        Returns what the queries are made of, [B, T, d], and the entity index of every aligned token, [B, T, N'] int64
        ([B, T, 1] when only frame tokens align, [B, T, 0] when the queries come from elsewhere).
        """
        batch, num_frames = tokens.shape[:2]
        if self.source == "entities":
            if not self.regions:
                tokens, size = tokens[:, :, :1], size[:, :, :1]
            index, aligned = align(tokens, self.entities, self.tau if tau is None else tau, seed, self.hard)
            return self.pool(aligned, index, size), index
        queries = self.learned.expand(batch, -1, -1) if self.source == "learned" else tokens[:, :, 0]
        return queries, torch.empty(batch, num_frames, 0, dtype=torch.int64, device=tokens.device)

    def pool(self, aligned: Tensor, index: Tensor, size: Tensor) -> Tensor:
        """Pool the entities [B, T, N', d] that tokens chose, with their index and the tokens' size [B, T, N']."""
        if self.pooling == "mean":
            return aligned.mean(2)
        if self.pooling == "size":
            weight = size
        elif self.pooling == "distinct":  # every entity once, however many tokens chose it
            weight = 1 / (index[..., None] == index[..., None, :]).sum(-1)
        else:
            weight = self.attention(aligned).squeeze(-1).softmax(-1)
        weight = (weight / weight.sum(-1, keepdim=True)).to(aligned.dtype)
        return (weight[..., None, :] @ aligned).squeeze(-2)

    def queries(self, pooled: Tensor) -> Tensor:
        """Return the decoder's queries of what `forward` gave, [B, T, d] (eq. 6)."""
        return self.mlp(self.norm(pooled))
