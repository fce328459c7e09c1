"""Put a trained model in a folder of its own, for others to use: weights, settings, corpus and a model card.

python -m alt_fast.export --checkpoint runs/mine --out mine --program
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from alt_fast.checkpoint import WEIGHTS, CheckpointError, TrainedModel, load, save_model, write_atomically, write_json
from alt_fast.corpus import CorpusError
from alt_fast.model_card import model_card
from alt_fast.run_folder import CONFIG, ENVIRONMENT, METRICS, RunError

PROGRAM = "video_encoder.pt2"


class VideoEncoder(nn.Module):
    """[B, T, 3, H, W] normalised frames to the video vector z [B, d] (eq. 9): ALT without class names."""

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.model = trained.model.eval()

    def forward(self, video: Tensor) -> Tensor:
        return self.model.describe(video)[0]


def export_program(trained: TrainedModel) -> torch.export.ExportedProgram:
    """The video encoder as a program without our code, for any number of clips; it runs where it was exported.

    `import alt_fast_kernels` before torch.export.load: the program calls its operations.
    """
    config = trained.model.config
    device = trained.model.logit_scale.device
    video = torch.zeros(2, config.frames, 3, *trained.model.image_size, device=device)
    with torch.no_grad():
        return torch.export.export(
            VideoEncoder(trained), (video,), dynamic_shapes=({0: torch.export.Dim("clips", max=1024)},)
        )


def export(checkpoint: Path, out: Path, program: bool) -> None:
    """Fill the folder `out`. Raises CheckpointError, CorpusError, and RunError when the folder holds something."""
    trained = load(checkpoint)
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is not empty: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    run = checkpoint if (checkpoint / CONFIG).exists() else None
    if run is not None:
        for name in (CONFIG, ENVIRONMENT, METRICS):
            if (run / name).exists():
                shutil.copyfile(run / name, out / name)
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
        exported = export_program(trained)
        write_atomically(out / PROGRAM, lambda partial: torch.export.save(exported, partial))
    write_atomically(out / "README.md", lambda partial: partial.write_text(model_card(trained, run), encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m alt_fast.export",
        description="Put a trained model in a folder for others: model.safetensors, which holds all that alt_fast.load "
        "needs, and its settings, corpus, scores and model card to read.",
    )
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="RUN", help="run folder or .safetensors file")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write, new or empty")
    parser.add_argument("--program", action="store_true", help=f"add {PROGRAM}, the video encoder by torch.export")
    arguments = parser.parse_args(argv)
    try:
        export(arguments.checkpoint, arguments.out, arguments.program)
    except (CheckpointError, CorpusError, RunError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    for path in sorted(arguments.out.iterdir()):
        print(f"{path.stat().st_size / 1e6:10.2f} MB  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
