"""What the scores of a test tell: classes, confusions, calibration."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BINS = 10


def calibration(scores: Tensor, labels: Tensor) -> dict[str, Any]:
    """Measure how far confidence is from accuracy: expected calibration error over ten bins (Guo et al., 2017).

    scores: [N, I] probabilities. labels: [N]. Returns {"error": 0 to 1, "bins": of "videos", "confidence", "accuracy"}.
    """
    confidence, predicted = scores.max(1)
    right = (predicted == labels).float()
    number = (confidence * BINS).long().clamp(max=BINS - 1)
    bins = []
    for b in range(BINS):
        inside = number == b
        if inside.any():
            means = confidence[inside].mean().item(), right[inside].mean().item()
            bins.append({"videos": int(inside.sum()), "confidence": means[0], "accuracy": means[1]})
    error = sum(b["videos"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / len(labels)
    return {"error": error, "bins": bins}


def per_class(scores: Tensor, labels: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Count videos, top-1 (recall), precision and what it is most often taken for, by class; None without videos."""
    predicted = scores.argmax(1)
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        own, called = labels == i, predicted == i
        wrong = predicted[own & ~called]
        rows.append(
            {
                "name": name,
                "videos": int(own.sum()),
                "top1": (called & own).sum().item() / int(own.sum()) if own.any() else None,
                "precision": (called & own).sum().item() / int(called.sum()) if called.any() else None,
                "taken_for": names[int(wrong.mode().values)] if len(wrong) else "",
            }
        )
    return rows


def confusion(scores: Tensor, labels: Tensor) -> list[list[int]]:
    """Return [I, I], videos of each class (row) by predicted class."""
    count = scores.shape[1]
    return torch.bincount(labels * count + scores.argmax(1), minlength=count**2).view(count, count).tolist()
