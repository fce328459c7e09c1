"""A patched timm ViT against the un-merged one and published ToMe: does the FLOP saving reach the clock?"""

from typing import Any

import pytest
import torch

from benchmarks.closed_form import VITS, vit_macs
from benchmarks.conftest import Cut, RunRace
from benchmarks.encoders import FACTS, Encoders
from benchmarks.peers import DROPPED, MERGED, ORIGINAL, OURS, PLAIN, PUBLISHED


@pytest.mark.parametrize("mode", ["inference", "inference, compiled", "training"])
@pytest.mark.parametrize(
    ("name", "r"), [("vit_base_patch16_224", 8), ("vit_base_patch16_224", 13), ("vit_large_patch14_224", 8)]
)
def test_encoder(name: str, r: int, mode: str, race: RunRace, cut: Cut, full: bool, encoders: Encoders) -> None:
    gpu = encoders.device == "cuda"
    if not gpu and name != "vit_base_patch16_224":
        pytest.skip("ViT-L takes too long on a CPU")
    if not gpu and mode == "training" and r == 8:
        pytest.skip("on a CPU training is measured at r = 13 only")
    batch = (64 if mode == "training" else 256) if gpu else (4 if mode == "training" else 8)
    case = f"{name}, r = {r}, {mode}, batch {batch}, {str(encoders.dtype).removeprefix('torch.')}"
    if mode != "training" and r != 8:
        cut(case)
    contestants, skipped = [PLAIN, PUBLISHED, DROPPED, OURS], {}
    if full:
        contestants.append(MERGED)
    if encoders.tome is None:
        skipped[ORIGINAL] = "no checkout given (--tome PATH)"
    else:
        try:
            encoders.build(ORIGINAL, name, r)
        except Exception as error:  # it is written for timm 0.4.12
            skipped[ORIGINAL] = f"{type(error).__name__}: {error}"
        else:
            contestants.append(ORIGINAL)
    agreement = encoders.agreement(contestants, name, r)
    if (cosine := agreement[OURS]["cosine_to_published"]) < 0.9999:
        pytest.fail(f"ours and the published algorithm differ, cosine {cosine}: no speed is reported")
    compiled = mode == "inference, compiled" or (gpu and mode == "training")
    models = {who: encoders.racing(who, name, r, compiled) for who in contestants}
    images = torch.randn(batch, 3, 224, 224, device=encoders.device, dtype=encoders.dtype)
    run = train if mode == "training" else infer
    flop_ratio = vit_macs(VITS[name], 0) / vit_macs(VITS[name], r)
    race(
        case,
        {who: (lambda model=model: run(model, images)) for who, model in models.items()},
        OURS,
        PLAIN,
        rounds=30 if gpu else 5,
        skipped=skipped,
        further=[MERGED],
        flop_ratio=dict.fromkeys([OURS, MERGED, PUBLISHED, ORIGINAL, DROPPED], flop_ratio),
        **{fact: {who: found[fact] for who, found in agreement.items()} for fact in FACTS},
    )


def infer(model: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(images)


def train(model: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """Forward and backward, without an optimizer."""
    loss = model(images).float().square().mean()
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))
