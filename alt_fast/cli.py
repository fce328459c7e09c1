"""What all commands share: options that mean one thing everywhere, and the one place where errors become exit statuses.

Nothing here, and nothing that a command needs to build its parser, imports PyTorch: `--help` answers at once.
"""

import argparse
import errno
import io
import os
import re
import select
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, get_args

from alt_fast.corpus import CATEGORIES
from alt_fast.data.config import LoaderName
from alt_fast.errors import AltFastError, ArgumentError

if TYPE_CHECKING:
    from alt_fast.inference.scoring import EvalConfig
    from alt_fast.inference.trained import TrainedModel

EXTRAS = {
    "av": "video",
    "open_clip": "video",
    "jsonargparse": "train",
    "tensorboard": "train",
    "nltk": "corpus",
    "openai": "corpus",
    "sentence_transformers": "corpus",
    "transformers": "corpus",
    "nvidia": "dali",
    "xformers": "gpu",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "sentryward": "verify",
}
"""Optional packages, by the name that is imported, and the extra that installs each."""

OF_PATHS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC, errno.EROFS)
"""What a path, or a full disk, can be to blame for wherever it is met."""

SHOWN = 20
"""Lines that a command prints of what --json has all of."""


def run(
    make_parser: Callable[[], Any],
    work: Callable[[Any], int],
    argv: Sequence[str] | None = None,
    interrupted: str = "interrupted",
) -> int:
    """Parse and work; returns the exit status. interrupted: what to say after Ctrl-C.

    An AltFastError becomes one line on standard error. Whatever else is raised is a fault of ours, or of a library: it
    shows its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    try:
        status = work(make_parser().parse_args(argv))
        if sys.stdout is not None:  # it may be closed
            sys.stdout.flush()
    except AltFastError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.status
    except ModuleNotFoundError as e:
        extra = EXTRAS.get((e.name or "").partition(".")[0])
        if extra is None:
            raise
        print(f"error: this needs {e.name}: pip install 'alt-fast[{extra}]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _has_no_reader(sys.stdout):
            raise  # another pipe broke
        _drop_output()  # "... | head" has seen enough
        return 141
    except OSError as e:
        if e.errno not in OF_PATHS:
            raise
        _flush_or_drop()
        named = "" if e.filename is None else f"{os.fsdecode(e.filename)}: "
        print(f"error: {named}{e.strerror}", file=sys.stderr)
        return 1
    return status


def _flush_or_drop() -> None:
    """Write out what was printed; where that fails, nothing tries it again, with a traceback, as Python ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _drop_output()


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _has_no_reader(file: TextIO) -> bool:
    poll = select.poll()
    poll.register(file, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def choose(
    prog: str, description: str, commands: Mapping[str, str], argv: Sequence[str] | None
) -> tuple[str, list[str]]:
    """Return the command that the first argument names, and the arguments behind it; `--help` lists them all."""
    width = max(map(len, commands))
    lines = "\n".join(f"  {name:{width}}  {what}" for name, what in commands.items())
    parser = argparse.ArgumentParser(
        prog,
        f"{prog} COMMAND ...",
        description,
        f"commands:\n{lines}\n\n{prog} COMMAND --help explains one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=commands, metavar="COMMAND", help="one of those below")
    argv = list(sys.argv[1:] if argv is None else argv)
    return parser.parse_args(argv[:1]).command, argv[1:]


class Parser(argparse.ArgumentParser):
    """Takes options by their whole names only."""

    def __init__(self, *names: Any, **options: Any) -> None:
        super().__init__(*names, **{"allow_abbrev": False} | options)


def make_parser(command: str, description: str, **options: Any) -> argparse.ArgumentParser:
    """Return an empty parser of `alt-fast COMMAND`."""
    return Parser(f"alt-fast {command}", description=description, **options)


def seconds(text: str) -> float:
    """Read a length of time, as 4s, 0.5 s, 800ms, 2min, 1h or a number of seconds; for an argument's `type`."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+) ?(ms|s|min|h|)", text.strip())
    length = 0.0 if found is None else float(found[1]) * {"ms": 0.001, "min": 60.0, "h": 3600.0}.get(found[2], 1.0)
    if length <= 0:
        raise argparse.ArgumentTypeError(f"must be a time above 0, such as 4s or 800ms, got {text!r}")
    return length


def add_checkpoint(parser: Any, required: bool = True) -> None:
    """Add --checkpoint."""
    parser.add_argument(
        "--checkpoint", required=required, metavar="RUN", help="trained model: run folder or model.safetensors"
    )


def add_corpus(parser: Any) -> None:
    """Add --corpus and --categories."""
    parser.add_argument(
        "--corpus",
        metavar="FILE",
        help='text corpus to align to, "motion_shapes" or "motion_shapes_2"; default: the one trained with',
    )
    parser.add_argument(
        "--categories", nargs="+", choices=CATEGORIES, help="only these of its entities; default: all of --corpus"
    )


def add_labels(parser: Any, required: bool = False) -> None:
    """Add --labels, for `data.annotations.read_labels`."""
    parser.add_argument(
        "--labels",
        nargs="+",
        required=required,
        metavar="LABEL",
        help='texts, class files or text files with one label a line; "kinetics400" is known'
        + ("" if required else "; default: the classes trained on"),
    )


def add_texts(parser: Any) -> None:
    """Add --texts, for `TrainedModel.use_texts`."""
    parser.add_argument(
        "--texts",
        metavar="FILE",
        help="CSV with columns name,text: descriptions of classes, read behind their names (corpus rephrase makes one)",
    )


def add_r(parser: Any, default: int | None = None) -> None:
    """Add --r."""
    what = "as trained" if default is None else default
    parser.add_argument(
        "--r", type=int, default=default, metavar="R", help=f"tokens merged away per layer (default: {what})"
    )


def add_rotary(parser: Any) -> None:
    """Add --rotary, which `tome.rules` checks."""
    what = "what turns merged tokens of a backbone with rotary positions: mean, unit, centroid or survivor"
    parser.add_argument("--rotary", metavar="RULE", help=f"{what} (default: as trained)")


def add_also_r(parser: Any, what: str) -> None:
    """Add --also-r: further r to look at."""
    parser.add_argument("--also-r", type=int, nargs="*", metavar="R", help=what)


def add_list(parser: Any, required: bool, what: str, classes: str, several: bool = False) -> None:
    """Add --list, with --classes and --root. classes: what is taken without --classes."""
    nargs = "+" if several else None
    parser.add_argument("--list", required=required, nargs=nargs, metavar="LIST", help=what)
    parser.add_argument("--classes", metavar="FILE", help=f"class file of --list; default: {classes}")
    parser.add_argument("--root", metavar="DIR", help="folder that video paths start from; default: the list's")


def add_out(parser: Any, kind: str, what: str, required: bool = True) -> None:
    """Add --out."""
    parser.add_argument("--out", type=Path, required=required, metavar=kind, help=what)


def check_out(arguments: argparse.Namespace, name: str = "out") -> None:
    """Raise ArgumentError where the file to write, the argument `name`, is one that another argument says to read."""
    out = getattr(arguments, name)
    if out is None or not os.path.isfile(out):
        return
    for other, value in vars(arguments).items():
        for given in value if isinstance(value, list) else [value]:
            if other != name and isinstance(given, str | Path) and os.path.exists(given) and out.samefile(given):
                raise ArgumentError(f"--{name} {out} would replace {given}, which is to be read: choose another")


def add_loader(parser: Any) -> None:
    """Add --loader."""
    parser.add_argument(
        "--loader", choices=get_args(LoaderName), default="auto", help="backend that decodes and augments"
    )


BATCH_SIZE = 32


def add_batch_size(parser: Any) -> None:
    """Add --batch-size."""
    what = f"clips per batch (default {BATCH_SIZE})"
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, metavar="B", help=what)


def add_workers(parser: Any) -> None:
    """Add --workers and --timeout."""
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="decoding processes (default 2)")
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="seconds for one video (default 60)")


def add_head(parser: Any) -> None:
    """Add --head."""
    parser.add_argument(
        "--head",
        choices=("alt", "clip", "both"),
        default="alt",
        help="who scores: alt (default), clip: the frame tokens against class names, which is zero-shot CLIP while the "
        "image tower and augment.normalize are CLIP's, or both: the mean of their probabilities",
    )


def add_interpolation(parser: Any) -> None:
    """Add --interpolate and --tower."""
    parser.add_argument(
        "--interpolate",
        type=float,
        nargs="+",
        default=[],
        metavar="SHARE",
        help="also with the image tower between CLIP's, 0, and the trained one, 1 (WiSE-FT)",
    )
    parser.add_argument(
        "--tower", metavar="FILE", help="CLIP's weights for it; default: those that the run started from"
    )


def add_device(parser: Any) -> None:
    """Add --device."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")


BACKBONE, PRETRAINED = "ViT-B-16", "openai"


def add_clip(parser: Any) -> None:
    """Add --backbone and --pretrained, of `open_model`."""
    parser.add_argument(
        "--backbone", metavar="NAME", help=f"--head clip without a checkpoint: open_clip model name ({BACKBONE})"
    )
    parser.add_argument("--pretrained", metavar="TAG|FILE", help=f"... and its weights ({PRETRAINED})")


def add_json(parser: Any) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON, with all there is")


def add_compile(parser: Any) -> None:
    """Add --compile."""
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the model: a minute or more the first time, seconds from then on; on a CPU it needs g++",
    )


def add_cuda_graphs(parser: Any) -> None:
    """Add --cuda-graphs."""
    parser.add_argument(
        "--cuda-graphs", action="store_true", help="launch what a picture costs at once, as CUDA graphs; needs a GPU"
    )


def add_testing(parser: Any) -> None:
    """Add which model to use and how, for every command that runs a trained model over lists of videos."""
    add_checkpoint(parser)
    add_corpus(parser)
    add_r(parser)
    add_rotary(parser)
    add_batch_size(parser)
    parser.add_argument("--crops", type=int, default=1, metavar="N", help="spatial crops per clip (default 1)")
    parser.add_argument("--clips", type=int, default=1, metavar="N", help="temporal clips per video (default 1)")
    add_loader(parser)
    add_workers(parser)
    add_device(parser)
    add_compile(parser)


def load_model(arguments: argparse.Namespace) -> "TrainedModel":
    """Do what --checkpoint, --device, --r, --rotary, --corpus, --categories and --compile ask for.

    Raises what `alt_fast.load` does, ArgumentError, CorpusError, or RunError where nothing can be compiled.
    """
    from alt_fast.distributed import pick_device
    from alt_fast.inference.speed import compile_model
    from alt_fast.inference.trained import load

    trained = load(arguments.checkpoint).to(pick_device(arguments.device))
    if arguments.r is not None:
        trained.set_r(arguments.r)
    if arguments.rotary is not None:
        trained.set_rotary(arguments.rotary)
    trained.use_corpus(arguments.corpus, arguments.categories)
    if vars(arguments).get("compile"):
        compile_model(trained.model)
    return trained


def check_corpus_used(arguments: argparse.Namespace, head: str) -> None:
    """Raise ArgumentError for a corpus that the head does not align to."""
    if head == "clip" and (arguments.corpus or arguments.categories):
        raise ArgumentError("--corpus and --categories have no effect on --head clip")


def open_model(arguments: argparse.Namespace) -> "TrainedModel":
    """Return the checkpoint, or a bare CLIP for --head clip. Raises ArgumentError for options without an effect."""
    from alt_fast.distributed import pick_device
    from alt_fast.inference.speed import compile_model
    from alt_fast.inference.trained import load_clip

    check_corpus_used(arguments, arguments.head)
    if arguments.checkpoint is not None:
        for name in ("backbone", "pretrained"):
            if getattr(arguments, name) is not None:
                raise ArgumentError(
                    f"--{name} is for --head clip without a checkpoint: {arguments.checkpoint} has its own"
                )
        return load_model(arguments)
    if arguments.head != "clip":
        raise ArgumentError(
            f"--head {arguments.head} needs --checkpoint RUN; without training, use --head clip with --backbone and "
            "--pretrained"
        )
    if arguments.labels is None:
        raise ArgumentError("--head clip without a checkpoint needs --labels")
    r = 8 if arguments.r is None else arguments.r
    device = pick_device(arguments.device)
    clip = load_clip(arguments.backbone or BACKBONE, arguments.pretrained or PRETRAINED, r).to(device)
    if arguments.rotary is not None:
        clip.set_rotary(arguments.rotary)
    if arguments.compile:
        compile_model(clip.model)
    return clip


def check_tower(arguments: argparse.Namespace, trained: "TrainedModel") -> str:
    """Return the weights that --interpolate starts from; "" without it.

    They are read once, before a test that may take hours. Raises ArgumentError, RunError or WeightsError.
    """
    from alt_fast.inference.lists import starting_tower

    for share in arguments.interpolate:
        if not 0 <= share <= 1:
            raise ArgumentError(f"--interpolate must be in [0, 1], got {share:g}")
    if not arguments.interpolate:
        if arguments.tower:
            raise ArgumentError("--tower belongs to --interpolate")
        return ""
    tower = starting_tower(Path(arguments.checkpoint), arguments.tower)
    trained.tower_of(tower)
    return tower


def load_between(
    arguments: argparse.Namespace, tower: str, labels: Sequence[str]
) -> "Iterator[tuple[TrainedModel, dict[str, Any]]]":
    """Give the model at every share of --interpolate, and what its scores are told with.

    tower: of `check_tower`. labels: those that --texts may describe. "same_tower": whether it did not move in training,
    so that all shares give the same.
    """
    for share in arguments.interpolate:
        between = load_model(arguments)
        between.use_texts(arguments.texts, labels)
        moved = between.interpolate(tower, share)
        yield between, {"interpolate": share, "same_tower": not moved}


SAME_TOWER = "the image tower is CLIP's, as training left it: every share of --interpolate gives the same scores"


@contextmanager
def load_tested(arguments: argparse.Namespace) -> "Iterator[tuple[TrainedModel, EvalConfig]]":
    """Do what the options of `add_testing` ask for: give the model, and how to test it. Raises as `load_model`.

    Inside, as many threads compute as is good beside --workers.
    """
    from alt_fast.data.config import Loading
    from alt_fast.inference.scoring import EvalConfig
    from alt_fast.inference.speed import compiled_for, computing

    loading = Loading(arguments.loader, arguments.workers, arguments.timeout)
    head = vars(arguments).get("head", "alt")  # of commands that score
    if not (vars(arguments).get("probe_alignment") or vars(arguments).get("explain")):  # which align, whoever scores
        check_corpus_used(arguments, head)
    testing = EvalConfig(arguments.batch_size, arguments.crops, arguments.clips, loading, head)
    trained = load_model(arguments)
    compiled = compiled_for(trained.model, testing.batch_size, head) if arguments.compile else nullcontext()
    with computing(trained.model, arguments.workers), compiled:
        yield trained, testing
