"""A patched timm ViT against the un-merged one and published ToMe: does the FLOP saving reach the clock?"""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

import alt_fast
from benchmarks.closed_form import VITS, vit_macs
from benchmarks.conftest import RunRace
from benchmarks.peers import (
    DROPPED,
    ORIGINAL,
    OURS,
    PLAIN,
    PUBLISHED,
    UNMERGED,
    PublishedToMe,
    TokensDropped,
    original_tome,
)


@pytest.mark.parametrize("mode", ["inference", "inference, compiled", "training"])
@pytest.mark.parametrize(
    ("name", "r"), [("vit_base_patch16_224", 8), ("vit_base_patch16_224", 13), ("vit_large_patch14_224", 8)]
)
def test_encoder(name: str, r: int, mode: str, race: RunRace, device: str, pytestconfig: pytest.Config) -> None:
    gpu = device == "cuda"
    if not gpu and name != "vit_base_patch16_224":
        pytest.skip("ViT-L takes too long on a CPU")
    if not gpu and mode == "training" and r == 8:
        pytest.skip("on a CPU training is measured at r = 13 only")
    torch.manual_seed(0)
    batch = (64 if mode == "training" else 256) if gpu else (4 if mode == "training" else 8)
    dtype = torch.bfloat16 if gpu else torch.float32
    plain = timm.create_model(name).to(device).eval()
    models = {
        PLAIN: plain,
        PUBLISHED: PublishedToMe(plain, r),
        DROPPED: TokensDropped(plain, r),
        OURS: alt_fast.apply_patch(copy.deepcopy(plain), r=r),
        UNMERGED: alt_fast.apply_patch(copy.deepcopy(plain), r=r, unmerge=True),
    }
    skipped = {}
    if pytestconfig.getoption("--tome") is None:
        skipped[ORIGINAL] = "no checkout given (--tome PATH)"
    else:
        try:
            models[ORIGINAL] = original_tome(pytestconfig.getoption("--tome"), plain, r)
        except Exception as error:  # it is written for timm 0.4.12
            skipped[ORIGINAL] = f"{type(error).__name__}: {error}"
    images = torch.randn(batch, 3, 224, 224, device=device)
    agreement = compare(models, images[:8])
    if (cosine := agreement[OURS]["cosine_to_published"]) < 0.9999:
        pytest.fail(f"ours and the published algorithm differ, cosine {cosine}: no speed is reported")
    models = {who: model.to(dtype) for who, model in models.items()}
    images = images.to(dtype)
    if mode == "inference, compiled" or (gpu and mode == "training"):
        models = {who: torch.compile(model, dynamic=False) for who, model in models.items()}
    run = train if mode == "training" else infer
    steps = {who: (lambda model=model: run(model, images)) for who, model in models.items()}
    flop_ratio = vit_macs(VITS[name], 0) / vit_macs(VITS[name], r)
    race(
        f"{name}, r = {r}, {mode}, batch {batch}, {str(dtype).removeprefix('torch.')}",
        steps,
        OURS,
        PLAIN,
        rounds=30 if gpu else 5,
        skipped=skipped,
        flop_ratio=dict.fromkeys([OURS, UNMERGED, PUBLISHED, ORIGINAL, DROPPED], flop_ratio),
        **{fact: {who: found[fact] for who, found in agreement.items()} for fact in FACTS},
    )


FACTS = ("cosine_to_published", "max_logit_difference", "same_top1")


def compare(models: dict[str, nn.Module], images: torch.Tensor) -> dict[str, dict[str, float]]:
    """Every contestant's logits in fp32, of FACTS, by contestant.

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


def infer(model: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(images)


def train(model: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """Forward and backward, without an optimizer."""
    loss = model(images).float().square().mean()
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))
