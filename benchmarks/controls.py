"""Models of other people, counted as ALT is: the counters must find what their own authors print."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from alt_fast.measure.counting import dispatcher_count
from alt_fast.model.clip_weights import build_clip
from benchmarks.audit import CLASSES, Audit, fvcore_count
from benchmarks.closed_form import VITS, encoder_macs
from benchmarks.paper import Published


class XCLIPVideo(nn.Module):
    """transformers' X-CLIP but for the text tower: cross-frame image tower, integration over time, prompts or none."""

    def __init__(self, patch: int, frames: int, prompts: bool = True) -> None:
        super().__init__()
        from transformers import XCLIPConfig, XCLIPVisionConfig
        from transformers.models.x_clip import modeling_x_clip as x_clip

        width, joint = (1024, 768) if patch == 14 else (768, 512)
        config = XCLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=24 if patch == 14 else 12,
            num_attention_heads=width // 64,
            patch_size=patch,
            num_frames=frames,
        )
        over_time = XCLIPVisionConfig(
            hidden_size=joint,
            intermediate_size=4 * joint,
            num_hidden_layers=1,
            num_attention_heads=joint // 64,
            num_frames=frames,
        )
        self.tower = x_clip.XCLIPVisionModel(config)
        self.projection = nn.Linear(width, joint, bias=False)
        self.integration = x_clip.XCLIPMultiframeIntegrationTransformer(over_time)
        self.prompts: nn.Module | None = None
        if prompts:
            self.norm = nn.LayerNorm(width)
            self.patch_projection = nn.Linear(width, joint, bias=False)
            generator = XCLIPConfig(projection_dim=joint, prompt_num_attention_heads=joint // 64)
            self.prompts = x_clip.XCLIPPromptGenerator(generator)

    def forward(self, frames: Tensor, classes: Tensor) -> Tensor:
        """frames: [T, 3, 224, 224]. classes: [1, I, d] -> scores [1, I]."""
        patches, image = self.tower(frames)[:2]
        video = self.integration(self.projection(image).unsqueeze(0))[1]
        if self.prompts is not None:
            patches = self.patch_projection(self.norm(patches[:, 1:])).mean(0, keepdim=True)
            classes = classes + self.prompts(classes, patches)
        return F.normalize(video, dim=-1) @ F.normalize(classes, dim=-1).transpose(1, 2)


@contextmanager
def attention_in_parts() -> Iterator[None]:
    """nn.MultiheadAttention without its one fused op for inference, which hides the projections from both counters."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def audit_control(row: Published) -> Audit:
    """Count a model of other people: by fvcore, by the dispatcher, and by the closed form where it is a plain ViT."""
    frames, parts = 1, {}
    classes: tuple[Tensor, ...] = ()
    if row.model.startswith("xclip"):
        frames = row.options["frames"]
        model: nn.Module = XCLIPVideo(14 if row.model == "xclip_l14" else 16, **row.options)
        classes = (torch.randn(1, CLASSES, 768 if row.model == "xclip_l14" else 512),)
    elif row.model.startswith("vit"):
        with torch.device("meta"):  # drawing weights takes longer than counting, and they change no count
            model = getattr(torchvision.models, row.model)()
        model.to_empty(device="cpu")
        name = "vit_base_patch16_224" if row.model == "vit_b_16" else "vit_large_patch16_224"
        parts = encoder_macs(VITS[name], 0) | {"head": VITS[name].width * 1000}
    else:
        model = build_clip(row.model).visual
        name, joint = ("vit_base_patch16_224", 512) if row.model == "ViT-B-16" else ("vit_large_patch14_224", 768)
        parts = encoder_macs(VITS[name], 0) | {"projection": VITS[name].width * joint}
    model, inputs = model.eval(), (torch.randn(frames, 3, 224, 224), *classes)
    with attention_in_parts():
        counted = fvcore_count(model, inputs)
        dispatched = dispatcher_count(model, inputs)
    norms = counted.pop("layer_norm")
    macs = {"fvcore": sum(counted.values()), "FlopCounterMode": dispatched}
    if parts:
        macs["closed form"] = sum(parts.values())
    parameters = sum(p.numel() for p in model.parameters())
    return Audit(macs, {"fvcore": norms}, parts, parameters, parameters)
