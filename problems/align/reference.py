"""The entity most like each token (equations 4 and 5 of ALT, arXiv 2311.15619, without noise), in plain PyTorch."""

from typing import Any

import torch
from torch import Tensor

from problems.checks import NEAR, cosines, malformed, wrong_choice

Inputs = tuple[Tensor, Tensor]
"""tokens [M, C] and entities [K, C], of one dtype."""

CHUNK = 1024
"""Tokens that are checked at a time."""


def generate_input(
    num_tokens: int, num_entities: int, width: int, dtype: str, seed: int, device: torch.device | str = "cpu"
) -> Inputs:
    """Draw both; almost every entity has a twin, in turn a near and an equal one."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(getattr(torch, dtype))

    tokens, entities = normal(num_tokens, width), normal(num_entities, width)
    pairs = num_entities // 2
    shuffled = torch.randperm(num_entities, generator=generator, device=device)
    twins = entities[shuffled[:pairs]]
    near = twins[::2]
    near += NEAR * normal(*near.shape)
    entities[shuffled[pairs : 2 * pairs]] = twins
    return tokens, entities


def ref_kernel(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Align: index [M] int64 and entities[index] [M, C]; the whole assignment [M, K] in memory, summed in fp32."""
    tokens, entities = inputs
    index = (tokens.float() @ entities.float().T / entities.float().norm(dim=1).clamp_min(1e-12)).argmax(1)
    return index, entities[index]


def check_implementation(inputs: Inputs, output: Any) -> str | None:
    """Say which token is not aligned to the entity most like it, when cosines as near as fp32 can tell may swap."""
    tokens, entities = inputs
    expected = {"index": tokens.new_empty(len(tokens), dtype=torch.int64), "aligned": torch.zeros_like(tokens)}
    if reason := malformed(output, expected):
        return reason
    index, aligned = output
    if not bool(((index >= 0) & (index < len(entities))).all()):
        return f"index must be in [0, {len(entities)}), got {index.min().item()} to {index.max().item()}"
    if not torch.equal(aligned, entities[index]):
        return "aligned must be entities[index], bit for bit"
    faults = (_wrong_choice(inputs, index, first) for first in range(0, len(tokens), CHUNK))
    return next(filter(None, faults), None)


def _wrong_choice(inputs: Inputs, index: Tensor, first: int) -> str | None:
    """Say which of CHUNK tokens from `first` on chose wrongly."""
    tokens, entities = inputs
    chunk = slice(first, first + CHUNK)
    scores, tolerance = cosines(tokens[chunk], entities)
    return wrong_choice(scores, index[chunk], tolerance, lambda row: f"token {first + row}", int)
