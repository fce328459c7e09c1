"""A trained model as a folder for others, and its video encoder as a program of torch.export."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from alt_fast.errors import RunError
from alt_fast.files import (
    CARD,
    CONFIG,
    ENVIRONMENT,
    METRICS,
    WEIGHTS,
    make_folder,
    read_json,
    write_atomically,
    write_json,
    write_text,
)
from alt_fast.inference.model_card import model_card
from alt_fast.inference.trained import load, save_model
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


def export(checkpoint: str | Path, out: Path, program: bool) -> None:
    """Fill the folder `out`. checkpoint: a run folder or a file. program: also write the video encoder by torch.export.

    Raises CheckpointError, FileError, and RunError when the folder holds something.
    """
    checkpoint = Path(checkpoint)
    trained = load(checkpoint)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is no empty folder: choose another --out")
    make_folder(out)
    run = checkpoint if (checkpoint / CONFIG).exists() else None
    if run is not None:
        for name in (CONFIG, METRICS):
            if (run / name).exists():
                write_text(out / name, (run / name).read_text(encoding="utf-8"))
        if (run / ENVIRONMENT).exists():
            environment = read_json(run / ENVIRONMENT)
            write_json(out / ENVIRONMENT, {key: value for key, value in environment.items() if key != "command"})
    save_model(out / WEIGHTS, trained)
    write_json(
        out / "model.json",
        {
            "model": asdict(trained.model.config),
            "classes": trained.classes,
            "templates": trained.templates,
            "augment": asdict(trained.augment),
        },
    )
    if trained.model.corpus is not None:
        trained.model.corpus.save(out / "corpus.json")
    if program:
        exported = export_program(trained.model)
        write_atomically(out / PROGRAM, lambda partial: torch.export.save(exported, partial))
    write_text(out / CARD, model_card(trained, run))
