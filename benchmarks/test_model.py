"""The whole of ALT: a clip classified, and a training step, with merging, without it, and merging in plain PyTorch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from alt_fast.measure.memory import saved_bytes
from alt_fast.model.config import PRESETS
from alt_fast_kernels import use_backend
from benchmarks.audit import CLASSES, make_model, shape_of
from benchmarks.closed_form import alt_macs
from benchmarks.conftest import Cut, RunRace
from benchmarks.peers import published_alt
from benchmarks.session import Once

OURS, PLAIN, PUBLISHED, REFERENCES = "alt_fast", "un-merged", "published ToMe", "merged, plain PyTorch ops"


@pytest.mark.parametrize("mode", ["inference", "inference, compiled", "training step", "training step, compiled"])
@pytest.mark.parametrize("name", ["alt_b16", "alt_l14"])
def test_model(name: str, mode: str, race: RunRace, cut: Cut, once: Once, device: str) -> None:
    gpu = device == "cuda"
    if not gpu and name != "alt_b16":
        pytest.skip("ALT-L/14 takes too long on a CPU")
    training = "training" in mode
    batch = (8 if training else 32) if gpu else 1
    merged, plain = PRESETS[name], replace(PRESETS[name], r=0)
    dtype = torch.bfloat16 if gpu else torch.float32
    case = (
        f"{name}, r = {merged.r}, {mode}, {batch} clips of {merged.frames} frames, {str(dtype).removeprefix('torch.')}"
    )
    if "compiled" in mode:
        cut(case)
    models = once(name, lambda: contestants(name, device))
    joint = shape_of(merged).joint
    video = torch.randn(batch, merged.frames, 3, 224, 224, device=device)
    classes = F.normalize(torch.randn(CLASSES, joint, device=device), dim=-1)
    labels = torch.randint(CLASSES, (batch,), device=device)
    seed = torch.tensor(1, device=device)

    def step_of(who: str) -> Any:
        model = models[who].train(training)
        forward = torch.compile(model, dynamic=False) if "compiled" in mode else model

        def scores() -> torch.Tensor:
            with torch.autocast(device, dtype, enabled=gpu), use_backend("reference" if who == REFERENCES else "auto"):
                return forward(video, classes, seed).logits

        if not training:
            return torch.inference_mode()(scores)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, 1e-6, fused=True, capturable=gpu)

        def train() -> torch.Tensor:
            loss = F.cross_entropy(scores().float(), labels)
            for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = grad
            optimizer.step()
            return loss

        return train

    macs = {who: batch * _macs(plain if who == PLAIN else merged) for who in models}
    saved = {who: saved_bytes(step_of(who)) for who in models} if mode == "training step" else {}
    race(
        case,
        {who: step_of(who) for who in models},
        OURS,
        PLAIN,
        rounds=30 if gpu else 3,
        flop_ratio={OURS: macs[PLAIN] / macs[OURS]},
        activation_bytes=saved,
        **({} if training else {"macs": macs}),
    )
    for model in models.values():
        model.zero_grad()  # a gradient is as large as the model, which other modes race again


def contestants(name: str, device: str) -> dict[str, Any]:
    """ALT as it is raced in every mode."""
    torch.manual_seed(0)
    models = {OURS: make_model(PRESETS[name]), PLAIN: make_model(replace(PRESETS[name], r=0))}
    models[PUBLISHED] = published_alt(models[OURS])
    if device == "cuda":  # on a CPU ours is plain PyTorch already
        models[REFERENCES] = make_model(PRESETS[name])
    for model in models.values():
        model.to(device).text.requires_grad_(False)
    return models


def _macs(config: Any) -> int:
    parts = alt_macs(shape_of(config))
    return sum(parts.values()) - parts["norms"]
