"""Where in its frames a text is seen: maps by gradients, of a label and of entities (Fig. 4, left)."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt_fast.model.encoder import MergeSchedule, RegionEncoder
from alt_fast_kernels import unmerge


def relevance_maps(encoder: RegionEncoder, frames: Tensor, texts: Tensor, schedule: MergeSchedule) -> Tensor:
    """Return how much every patch speaks for each text, [K, T, h * w] in [0, 1], fp32 on the CPU.

    frames: [T, 3, H, W], normalised. texts: [K, d] in the joint space.

    As Grad-CAM (arXiv 1610.02391) at what the last layer's attention reads, the last place where patches act on the
    frame token: of each token the sum over channels of activation times its own gradient, and nothing below 0. Behind
    the norm, that is: before it a token's length changes nothing, and that sum is zero but for rounding and the norm's
    epsilon. The score is the cosine of frame token and text, as CLIP compares them; gScoreCAM, which the paper draws
    by, instead masks the image once per channel. Every patch has the value of the token that it is in, and every text
    its own scale: 1 is the largest of all frames.
    """
    with torch.inference_mode(False), torch.enable_grad():
        *layers, last = encoder.layers(schedule)
        tokens = encoder.start(frames.clone())  # frames may be of inference mode
        with torch.no_grad():
            for layer in layers:
                tokens = encoder.run_layer(*layer, tokens)
        before, norms = replace(tokens, x=tokens.x.detach().requires_grad_()), list[Tensor]()
        norm: nn.Module = last[0].ln_1  # type: ignore[assignment]
        with norm.register_forward_hook(lambda _, given, made: norms.append(made)):
            seen = encoder.finish(encoder.run_layer(*last, before))
        read = norms[-1]  # an adapter over time calls the norm before
        dtype = torch.promote_types(read.dtype, torch.float32)
        scores = F.normalize(seen.tokens[:, 0].to(dtype), dim=-1) @ F.normalize(texts.to(dtype, copy=True), dim=-1).T
        gradients = [torch.autograd.grad(score.sum(), read, retain_graph=True)[0] for score in scores.T]
        relevance = torch.stack([(read * gradient).sum(-1).relu() for gradient in gradients], -1)  # [T, N', K]
        maps = unmerge(relevance.detach().float(), before.source())[:, 1:].permute(2, 0, 1)
    return (maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)).cpu()
