"""A trained model as a folder for others."""

import shutil
from dataclasses import asdict
from pathlib import Path

import torch

from alt_fast.errors import RunError
from alt_fast.files import (
    CARD,
    CONFIG,
    ENVIRONMENT,
    METRICS,
    WEIGHTS,
    make_folder,
    write_atomically,
    write_json,
    write_text,
)
from alt_fast.inference.model_card import model_card
from alt_fast.inference.program import PROGRAM, export_program
from alt_fast.inference.trained import load, save_model


def export(checkpoint: str | Path, out: Path, program: bool) -> None:
    """Fill the folder `out`. checkpoint: a run folder or a file. program: also write the video encoder by torch.export.

    Raises CheckpointError, FileError, and RunError when the folder holds something.
    """
    checkpoint = Path(checkpoint)
    trained = load(checkpoint)
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is not empty: choose another --out")
    make_folder(out)
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
        exported = export_program(trained.model)
        write_atomically(out / PROGRAM, lambda partial: torch.export.save(exported, partial))
    write_text(out / CARD, model_card(trained, run))
