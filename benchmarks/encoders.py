"""The models of encoder races: timm's, and copies of them that merge or drop tokens, each built and compiled once."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import alt_fast
from benchmarks.peers import (
    DROPPED,
    MERGED,
    ORIGINAL,
    OURS,
    PLAIN,
    PUBLISHED,
    PublishedToMe,
    TokensDropped,
    original_tome,
)
from benchmarks.session import Once

FACTS = ("cosine_to_published", "max_logit_difference", "same_top1")


@dataclass(frozen=True)
class Encoders:
    """Contestants by name of timm's model and r. dtype: what they race in. tome: a checkout of it, for ORIGINAL."""

    once: Once
    device: str
    dtype: torch.dtype
    tome: Path | None = None

    def build(self, who: str, name: str, r: int) -> nn.Module:
        """A contestant in fp32, for images [B, 3, 224, 224]. Raises whatever a checkout of ToMe does."""
        if who == PLAIN:
            return self.once((PLAIN, name), lambda: self._plain(name))
        plain = self.build(PLAIN, name, r)
        makers: dict[str, Callable[[], nn.Module]] = {
            PUBLISHED: lambda: PublishedToMe(plain, r),
            DROPPED: lambda: TokensDropped(plain, r),
            OURS: lambda: alt_fast.apply_patch(copy.deepcopy(plain), r=r),
            MERGED: lambda: alt_fast.apply_patch(copy.deepcopy(plain), r=r, unmerge=False),
        }
        if self.tome is not None:
            makers[ORIGINAL] = partial(original_tome, self.tome, plain, r)
        return self.once((who, name, r), makers[who])

    def _plain(self, name: str) -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(name)
        return model.to(self.device).eval()

    def racing(self, who: str, name: str, r: int, compiled: bool = False) -> Any:
        """A contestant as it races."""
        model = self.build(who, name, r)
        if self.dtype != torch.float32:
            model = self.once((model, self.dtype), lambda: copy.deepcopy(model).to(self.dtype))
        return self.once((model, "compiled"), lambda: torch.compile(model, dynamic=False)) if compiled else model

    def agreement(self, contestants: Sequence[str], name: str, r: int) -> dict[str, dict[str, float]]:
        """FACTS of contestants' logits in fp32, on eight images."""

        def measure() -> dict[str, dict[str, float]]:
            torch.manual_seed(0)
            images = torch.randn(8, 3, 224, 224, device=self.device)
            return compare({who: self.build(who, name, r) for who in contestants}, images)

        return self.once((*contestants, name, r), measure)


def compare(models: dict[str, nn.Module], images: torch.Tensor) -> dict[str, dict[str, float]]:
    """FACTS of every contestant's logits, by contestant.

    The smallest cosine to the published algorithm; the largest difference from the un-merged model, and the share of
    images with its top-1 class.
    """
    with torch.inference_mode():
        logits = {who: model(images) for who, model in models.items()}
    return {
        who: {
            "cosine_to_published": torch.cosine_similarity(found, logits[PUBLISHED]).min().item(),
            "max_logit_difference": (found - logits[PLAIN]).abs().max().item(),
            "same_top1": (found.argmax(-1) == logits[PLAIN].argmax(-1)).float().mean().item(),
        }
        for who, found in logits.items()
    }
