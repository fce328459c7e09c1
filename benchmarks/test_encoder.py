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
from benchmarks.peers import DROPPED, ORIGINAL, OURS, PLAIN, PUBLISHED, PublishedToMe, TokensDropped, original_tome


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
    plain = timm.create_model(name, num_classes=0).to(device).eval()
    models = {
        PLAIN: plain,
        PUBLISHED: PublishedToMe(plain, r),
        DROPPED: TokensDropped(plain, r),
        OURS: alt_fast.apply_patch(copy.deepcopy(plain), r=r),
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
    agreement = check_agreement(models, images[:2])
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
        flop_ratio=dict.fromkeys([OURS, PUBLISHED, ORIGINAL, DROPPED], flop_ratio),
        cosine_to_published={OURS: agreement},
    )


def check_agreement(models: dict[str, nn.Module], images: torch.Tensor) -> float:
    """Smallest cosine of ours to the published algorithm, in fp32; no speed is reported when they differ."""
    with torch.inference_mode():
        ours, published = (models[name](images) for name in (OURS, PUBLISHED))
    cosine = torch.cosine_similarity(ours, published).min().item()
    assert cosine > 0.9999, f"ours and the published algorithm differ: cosine {cosine}"
    return cosine


def infer(model: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(images)


def train(model: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """Forward and backward, without an optimizer."""
    loss = model(images).float().square().mean()
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))
