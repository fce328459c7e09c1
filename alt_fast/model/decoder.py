"""Aligned queries attend to the frames over time -> one video vector (paper, eq. 8 and 9)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt_fast.model.alignment import MLP


class Attention(nn.Module):
    """Multi-head attention over a context (or over x itself), heads of width 64 (one head when narrower)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = max(1, width // 64)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: [B, T, d], context: [B, S, d] -> [B, T, d]."""
        q, k, v = self._project(x, x if context is None else context)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, context: Tensor) -> Tensor:
        """How much each x attends to each of the context, the mean over heads: [B, T, S]."""
        q, k, _ = self._project(x, context)
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1).mean(1)

    def _project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v


class Residual(nn.Module):
    """x + f(LayerNorm(x), ...)."""

    def __init__(self, width: int, branch: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.branch = branch

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        return x + self.branch(self.norm(x), *context)


class DecoderBlock(nn.Module):
    """Eq. 8. Frames: depthwise 1-D convolution over time, MLP. Queries: self-attention, MLP, cross-attention, MLP."""

    def __init__(self, width: int, self_attention: bool, conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel_size=3, padding=1, groups=width) if conv else None
        self.frame_mlp = Residual(width, MLP(width))
        self.self_attention = Residual(width, Attention(width)) if self_attention else None
        self.self_mlp = Residual(width, MLP(width))
        self.context_norm = nn.LayerNorm(width)
        self.cross_attention = Residual(width, Attention(width))
        self.cross_mlp = Residual(width, MLP(width))

    def forward(self, queries: Tensor, frames: Tensor) -> Tensor:
        """queries, frames: [B, T, d] -> queries [B, T, d]."""
        queries, context = self.prepare(queries, frames)
        return self.cross_mlp(self.cross_attention(queries, context))

    def frame_weights(self, queries: Tensor, frames: Tensor) -> Tensor:
        """How much the queries attend to each frame, the mean over heads and queries: [B, T] fp32, summing to 1."""
        queries, context = self.prepare(queries, frames)
        cross = self.cross_attention
        return cross.branch.weights(cross.norm(queries), context).mean(1).float()  # type: ignore[operator]

    def prepare(self, queries: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides of the cross-attention, [B, T, d] each."""
        if self.conv is not None:
            frames = frames + self.conv(frames.transpose(1, 2)).transpose(1, 2)
        context = self.context_norm(self.frame_mlp(frames))
        if self.self_attention is not None:
            queries = self.self_attention(queries)
        return self.self_mlp(queries), context


class VideoDecoder(nn.Module):
    """M blocks, each reading the same frame features (eq. 8), then the mean over time and an MLP (eq. 9)."""

    def __init__(self, width: int, depth: int, self_attention: bool, conv: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(width, self_attention, conv) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, queries: Tensor, frames: Tensor) -> Tensor:
        """queries, frames: [B, T, d] -> video vector z [B, d]."""
        for block in self.blocks:
            queries = block(queries, frames)
        return self.mlp(self.norm(queries.mean(1)))

    def frame_weights(self, queries: Tensor, frames: Tensor) -> Tensor:
        """How much the queries attend to each frame, the mean over blocks, heads and queries: [B, T], summing to 1."""
        total = torch.zeros(frames.shape[:2], device=frames.device)
        for block in self.blocks:
            total = total + block.frame_weights(queries, frames)  # type: ignore[operator]
            queries = block(queries, frames)
        return total / len(self.blocks)
