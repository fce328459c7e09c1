"""Region tokens x text entities -> one aligned query per frame (paper, eq. 4 to 6)."""

import torch
from torch import Tensor, nn

from alt_fast.model.config import QuerySource
from alt_fast_kernels import align


class MLP(nn.Sequential):
    """Linear to four times the width, GELU, linear back."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class Alignment(nn.Module):
    """One query per frame. `entities` [K, d] is a buffer: text embeddings are fixed (paper, appendix B)."""

    entities: Tensor

    def __init__(self, entities: Tensor, source: QuerySource, num_frames: int, regions: bool, tau: float) -> None:
        super().__init__()
        width = entities.shape[1]
        self.source, self.regions, self.tau = source, regions, tau
        self.register_buffer("entities", entities)
        self.mlp = MLP(width)
        if source == "learned":
            self.learned = nn.Parameter(torch.randn(num_frames, width) * width**-0.5)

    def forward(self, tokens: Tensor, seed: Tensor | None) -> tuple[Tensor, Tensor]:
        """tokens: [B, T, N', d], class token first. seed: draws eq. 4's noise, None for none.

        Returns queries [B, T, d] (eq. 6) and the entity index of every aligned token, [B, T, N'] int64 ([B, T, 1] when
        only frame tokens align, [B, T, 0] when the queries come from elsewhere).
        """
        batch, num_frames = tokens.shape[:2]
        if self.source == "entities":
            index, aligned = align(tokens if self.regions else tokens[:, :, :1], self.entities, self.tau, seed)
            return self.mlp(aligned.mean(2)), index
        queries = self.learned.expand(batch, -1, -1) if self.source == "learned" else tokens[:, :, 0]
        return self.mlp(queries), torch.empty(batch, num_frames, 0, dtype=torch.int64, device=tokens.device)
