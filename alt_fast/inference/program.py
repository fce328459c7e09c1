"""The video encoder as a program of torch.export."""

import torch
from torch import Tensor, nn

from alt_fast.model.alt import ALT

PROGRAM = "video_encoder.pt2"


class VideoEncoder(nn.Module):
    """[B, T, 3, H, W] normalised frames to the video vector z [B, d] (eq. 9): ALT without class names."""

    def __init__(self, model: ALT) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, video: Tensor) -> Tensor:
        return self.model.describe(video)[0]


def export_program(model: ALT) -> torch.export.ExportedProgram:
    """Return the video encoder as a program without our code, for any number of clips; it runs where it was exported.

    `import alt_fast_kernels` before torch.export.load: the program calls its operations.
    """
    config = model.config
    device = model.logit_scale.device
    video = torch.zeros(2, config.frames, 3, *model.image_size, device=device)
    with torch.no_grad():
        return torch.export.export(
            VideoEncoder(model), (video,), dynamic_shapes=({0: torch.export.Dim("clips", max=1024)},)
        )
