"""Learning rates: over the steps, and by parameter."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Schedule:
    """Steps in all, of which `warmup` rise linearly from zero; then a cosine down to `final` of the peak."""

    steps: int
    warmup: int
    final: float = 0.01

    def progress(self, step: int) -> float:
        """Return how far a step is: 0 for the first one, 1 for the last."""
        return step / max(1, self.steps - 1)

    def factor(self, step: int) -> float:
        """Return the learning rate of a step as a fraction of the peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(module: nn.Module, rates: Callable[[str], float], weight_decay: float) -> list[dict[str, Any]]:
    """Group trainable parameters by learning rate; those with one dimension or none (biases, norms) do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rates(name), decay), []).append(parameter)
    return [{"params": params, "lr": lr, "peak": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]
