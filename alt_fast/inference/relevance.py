"""Where in its frames a text is seen: maps by gradients, of a label and of entities (Fig. 4, left)."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from alt_fast.model.encoder import MergeSchedule, RegionEncoder
from alt_fast_kernels import unmerge


def relevance_maps(encoder: RegionEncoder, frames: Tensor, texts: Tensor, schedule: MergeSchedule) -> Tensor:
    """Return how much every patch speaks for each text, [K, T, h * w] in [0, 1], fp32 on the CPU.

    frames: [T, 3, H, W], normalised. texts: [K, d] in the joint space.

    Grad-CAM (arXiv 1610.02391, eq. 1 and 2) at the tokens that enter the last layer, the last place where patches act
    on the frame token: of each token the sum over channels of activation times gradient, and nothing below 0. The
    score is the cosine of frame token and text, as CLIP compares them; gScoreCAM, which the paper draws by, instead
    masks the image once per channel. Every patch has the value of the token that it is in, and every text its own
    scale: 1 is the largest of all frames.
    """
    with torch.inference_mode(False), torch.enable_grad():
        *layers, last = encoder.layers(schedule)
        tokens = encoder.start(frames.clone())  # frames may be of inference mode
        with torch.no_grad():
            for layer in layers:
                tokens = encoder.run_layer(*layer, tokens)
        before = tokens.x.detach().requires_grad_()
        seen = encoder.finish(encoder.run_layer(*last, replace(tokens, x=before)))
        dtype = torch.promote_types(before.dtype, torch.float32)
        scores = F.normalize(seen.tokens[:, 0].to(dtype), dim=-1) @ F.normalize(texts.to(dtype, copy=True), dim=-1).T
        gradients = [torch.autograd.grad(score.sum(), before, retain_graph=True)[0] for score in scores.T]
        relevance = torch.stack([(before * gradient).sum(-1).relu() for gradient in gradients], -1)  # [T, N', K]
        maps = unmerge(relevance.detach().float(), tokens.source())[:, 1:].permute(2, 0, 1)
    return (maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)).cpu()
