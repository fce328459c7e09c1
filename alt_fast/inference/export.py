"""A trained model as a folder for others, with programs of it that need less than our code."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from alt_fast.errors import ArgumentError, RunError
from alt_fast.files import (
    CARD,
    CONFIG,
    ENVIRONMENT,
    METRICS,
    WEIGHTS,
    read_json,
    whole_folder,
    write_atomically,
    write_json,
    write_text,
)
from alt_fast.inference.model_card import model_card
from alt_fast.inference.speed import check_compiler
from alt_fast.inference.trained import TrainedModel, load, save_model
from alt_fast.model.alt import ALT
from alt_fast.model.config import Head

PROGRAM, COMPILED = "video_encoder.pt2", "video_encoder.aoti.pt2"


@dataclass(frozen=True)
class Programs:
    """What a folder holds besides the weights.

    program: the video encoder by torch.export. aoti: the same, compiled for this kind of machine by AOTInductor. onnx:
    parts of the model as ONNX (`inference.onnx.PARTS`), empty for all. int8: of these also with weights of 8 bits.
    head: who scores in them; None for the model's own. labels: whose embeddings come along; None for the classes
    trained on.
    """

    program: bool = False
    aoti: bool = False
    onnx: Sequence[str] | None = None
    int8: bool = False
    head: Head | None = None
    labels: Sequence[str] | None = None

    def __post_init__(self) -> None:
        given = {"--int8": self.int8, "--head": self.head, "--labels": self.labels}
        alone = [name for name, value in given.items() if value]
        if alone and self.onnx is None:
            raise ArgumentError(f"{alone[0]} is of the ONNX files: add --onnx")


class VideoEncoder(nn.Module):
    """[B, T, 3, H, W] normalised frames to the video vector z [B, d] (eq. 9): ALT without class names."""

    def __init__(self, model: ALT) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, video: Tensor) -> Tensor:
        return self.model.describe(video)


def export_program(model: ALT) -> torch.export.ExportedProgram:
    """Return the video encoder as a program without our code, for any number of clips; it runs where it was exported.

    `import alt_fast_kernels` before torch.export.load: the program calls its operations.
    """
    config = model.config
    device = model.logit_scale.device
    video = torch.zeros(2, config.frames, 3, *model.image_size, device=device)
    with torch.no_grad():
        program = torch.export.export(
            VideoEncoder(model), (video,), dynamic_shapes=({0: torch.export.Dim("clips", max=1024)},)
        )
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine, to a file for others
    return program


def compile_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Compile by AOTInductor, for machines like this one; `torch._inductor.aoti_load_package` runs the file."""
    write_atomically(path, lambda file: torch._inductor.aoti_compile_and_package(program, package_path=str(file)))


def export(checkpoint: str | Path, out: Path, programs: Programs | None = None) -> None:
    """Make the folder `out`, whole or not at all. checkpoint: a run folder or a file. programs: by default none.

    Raises CheckpointError, FileError, ArgumentError for what cannot be exported so, and RunError when the folder holds
    something or a compiler is missing.
    """
    programs, checkpoint = programs or Programs(), Path(checkpoint)
    trained = load(checkpoint)
    if programs.aoti:
        check_compiler(trained.device, "--aoti")
    _check_empty(out)
    labels = trained.classes if programs.labels is None else programs.labels
    run = checkpoint if (checkpoint / CONFIG).exists() else None
    with whole_folder(out) as folder:
        _write_model(folder, trained, run)
        _write_programs(folder, trained, programs, labels)
        write_text(folder / CARD, model_card(trained, run))


def _check_empty(out: Path) -> None:
    """Raise RunError for a folder that holds something, and what is no folder."""
    held = [path.name for path in out.iterdir()] if out.is_dir() else []
    if held and all(name.startswith(".") and name.endswith(".partial") for name in held):  # of `whole_folder`
        raise RunError(
            f"{out} is no empty folder: an export that was killed, or still runs, left {held[0]} in it: remove that, "
            "or choose another --out"
        )
    if held or (out.exists() and not out.is_dir()):
        raise RunError(f"{out} is no empty folder: choose another --out")


def _write_model(folder: Path, trained: TrainedModel, run: Path | None) -> None:
    """Write the weights, what they are weights of, and how they were trained."""
    if run is not None:
        for name in (CONFIG, METRICS):
            if (run / name).exists():
                write_text(folder / name, (run / name).read_text(encoding="utf-8"))
        if (run / ENVIRONMENT).exists():
            environment = read_json(run / ENVIRONMENT)
            own = ("command", "started_in", "run")  # with paths of this machine
            write_json(folder / ENVIRONMENT, {key: value for key, value in environment.items() if key not in own})
    save_model(folder / WEIGHTS, trained)
    write_json(
        folder / "model.json",
        {
            "model": asdict(trained.model.config),
            "classes": trained.classes,
            "templates": trained.templates,
            "augment": asdict(trained.augment),
        },
    )
    if trained.model.corpus is not None:
        trained.model.corpus.save(folder / "corpus.json")


def _write_programs(folder: Path, trained: TrainedModel, programs: Programs, labels: Sequence[str]) -> None:
    if programs.onnx is not None:  # first: of these something may be refused
        from alt_fast.inference import onnx  # an extra

        files = onnx.build(trained, programs.onnx, labels, programs.head or trained.head)
        onnx.save(folder, files, programs.int8)
    if programs.program or programs.aoti:
        exported = export_program(trained.model)
        if programs.program:
            write_atomically(folder / PROGRAM, lambda file: torch.export.save(exported, file))
        if programs.aoti:
            compile_program(exported, folder / COMPILED)
