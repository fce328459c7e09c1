"""What a model returns as one tensor, and how near two models are."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alt_fast.errors import ArgumentError

NAMES = ("logits", "image_embeds", "image_features", "pooler_output", "last_hidden_state")
"""Which of several named tensors that a model returns is meant: the first of these, or else the first of all."""


def as_tensor(output: Any) -> Tensor:
    """The tensor that an output is about: itself, one by its name, the first of several. Raises ArgumentError."""
    values = output if isinstance(output, tuple | list) else (output,)
    if isinstance(output, Mapping):  # transformers' ModelOutput, and dictionaries
        values = (*(output.get(name) for name in NAMES), *output.values())
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise ArgumentError(f"model must return a tensor, or what holds one, got {type(output).__name__}")


def agreement(found: Tensor, expected: Tensor) -> dict[str, float]:
    """How near outputs are to the un-merged model's, by image: [B, ...] both.

    cosine: median over images, cosine_min: the smallest. max_difference: the largest of any number, 0 where all are
    equal. same_top1: share of images whose largest output is the same one. Empty where shapes differ, or a number is
    not finite: there is no nearness then.
    """
    if found.shape != expected.shape or not (found.isfinite().all() and expected.isfinite().all()):
        return {}
    found, expected = found.flatten(1).float(), expected.flatten(1).float()
    cosine = torch.cosine_similarity(found, expected)
    return {
        "cosine": cosine.quantile(0.5).item(),
        "cosine_min": cosine.min().item(),
        "max_difference": (found - expected).abs().max().item(),
        "same_top1": (found.argmax(1) == expected.argmax(1)).float().mean().item(),
    }
