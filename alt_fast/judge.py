"""The audit of a way of removing tokens from a vision transformer: ours, or anybody's.

alt-fast judge --model timm:vit_small_patch16_224 --method tome --r 8 13 --page tome.html
alt-fast judge --model timm:vit_small_patch16_224 --method my_package.patching:patch --r 8 --claim 2.0
alt-fast judge --model timm:vit_small_patch16_224 --sweep --out sweep.jsonl --page sweep.html
"""

import argparse
import hashlib
import math
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alt_fast import cli
from alt_fast.errors import AltFastError, ArgumentError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from alt_fast.measure.judge import Judgement, Mode, Settings
    from alt_fast.methods import Method


MODES: "tuple[Mode, ...]" = ("inference", "inference-compiled", "training", "training-compiled")


def reduction(text: str) -> Any:
    """Read an r: 8, 0.1, or one number per layer, 8,8,4,0."""
    try:
        values = [_number(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, or one per layer with commas, got {text!r}") from None
    return values[0] if len(values) == 1 else values


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if not math.isfinite(value):
            raise
        return value


def speedup(text: str) -> float:
    """Read a claim."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a speed-up, above 0, got {text!r}")
    return value


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = cli.make_parser(
        "judge",
        "Audit a way of removing tokens: the FLOPs it saves, the speed-up that arrives beside the highest that this "
        "machine gives to so few tokens, how near the model stays to itself, and what is wrong.",
    )
    parser.add_argument("--model", required=True, metavar="MODEL", help="timm:NAME, hf:NAME or open_clip:NAME")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="checkpoint file, a tag of open_clip, or random; by default those of the library",
    )
    parser.add_argument("--image-size", type=int, metavar="N", help="pixels; by default the architecture's own")
    parser.add_argument(
        "--method",
        nargs="+",
        metavar="METHOD",
        help="methods to judge, as alt-fast ls methods names them, all, or module:function, which is called with the "
        "model and r, and patches it in place; default: tome, with --sweep all",
    )
    parser.add_argument(
        "--r",
        nargs="+",
        type=reduction,
        metavar="R",
        help="what methods are given; default: the second of their values in a sweep",
    )
    parser.add_argument(
        "--path", type=Path, metavar="DIR", help="folder that the modules of --method are imported from"
    )
    parser.add_argument(
        "--public",
        nargs=2,
        action="append",
        default=[],
        metavar=("METHOD", "DIR"),
        help="race the public code of a method beside ours: a checkout of its repository",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="FILE",
        help="pictures, videos, or folders of them, for agreement; default: frames of Motion Shapes",
    )
    parser.add_argument("--count", type=int, default=16, metavar="N", help="how many of them (default 16)")
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, metavar="MODE", help=f"of {', '.join(MODES)} (default: all)"
    )
    parser.add_argument("--batches", nargs="+", type=int, metavar="B", help="default: 1 and 8, on a GPU 1 and 256")
    parser.add_argument("--rounds", type=int, metavar="N", help="of every race (default 9, on a GPU 30)")
    parser.add_argument(
        "--claim", type=speedup, metavar="X", help="a speed-up to judge; exits with 1 unless it is possible"
    )
    parser.add_argument("--sweep", action="store_true", help="many methods and r, by speed and agreement")
    cli.add_out(parser, "FILE", "write all measurements, as JSON lines; a sweep goes on with them", required=False)
    parser.add_argument("--page", type=Path, metavar="FILE", help="write a page (.html)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32, on a GPU bfloat16"
    )
    cli.add_device(parser)
    return parser


@dataclass(frozen=True)
class Case:
    """What is judged on: a model, pictures as it takes them, and what both are, for the reader."""

    model: "nn.Module"
    images: "Tensor"
    about: dict[str, Any]


def load_case(arguments: argparse.Namespace) -> Case:
    """Load the model, and its pictures."""
    import torch

    from alt_fast.data.images import drawn_images, read_images
    from alt_fast.distributed import pick_device
    from alt_fast.files import check_place
    from alt_fast.measure.provenance import provenance
    from alt_fast.model.image_models import load_image_model

    if arguments.count < 2:
        raise ArgumentError(f"--count must be >= 2, got {arguments.count}")
    for name, path in (("out", arguments.out), ("page", arguments.page)):
        if path is not None:
            cli.check_out(arguments, name)
            check_place(path)
    written = [os.path.realpath(path) for path in (arguments.out, arguments.page) if path is not None]
    if len(set(written)) < len(written):
        raise ArgumentError(f"--out and --page are the same file, {arguments.out}")
    device = pick_device(arguments.device)
    loaded = load_image_model(arguments.model, arguments.weights, arguments.image_size, head=True)
    if arguments.images is None:
        pictures, what = drawn_images(arguments.count, 224), "frames of Motion Shapes 2"
    else:
        pictures = read_images(arguments.images, arguments.count)
        what = f"of {', '.join(Path(name).name for name in arguments.images)}"
    if len(pictures) < 2:
        raise ArgumentError(f"--images must hold two pictures at least, got {len(pictures)}")
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    images = torch.stack([loaded.transform(picture) for picture in pictures]).to(device, dtype)
    model = loaded.model.to(device, dtype)
    about = {
        "model": shared_name(arguments.model),
        "weights": None if arguments.weights is None else shared_name(arguments.weights),
        "images": f"{len(pictures)} images, {images.shape[-2]} x {images.shape[-1]} pixels, {what}",
        "images_sha256": hashlib.sha256(images.float().cpu().numpy().tobytes()).hexdigest()[:16],
        "dtype": str(dtype).removeprefix("torch."),
        "provenance": provenance(),
    }
    return Case(model, images, about)


def shared_name(name: str) -> str:
    """Return a name without the folders of this machine: results and pages are made to be sent to others."""
    library, colon, place = name.rpartition(":")
    return f"{library}{colon}{Path(place).name}" if Path(place).exists() else name


def run(arguments: argparse.Namespace) -> int:
    """Judge, print, and write what was asked for."""
    if arguments.path is not None:
        sys.path.insert(0, str(arguments.path))
    if arguments.sweep and (arguments.claim is not None or arguments.public or arguments.modes is not None):
        raise ArgumentError("--claim, --public and --modes have no effect on a --sweep")
    if arguments.sweep and len(arguments.batches or [0]) > 1:
        raise ArgumentError(f"--sweep takes one of --batches, got {len(arguments.batches)}")
    case = load_case(arguments)
    return run_sweep(arguments, case) if arguments.sweep else run_judge(arguments, case)


def chosen(arguments: argparse.Namespace, default: Iterable[str]) -> "list[Method]":
    """Return the methods of --method. Raises ArgumentError."""
    from alt_fast.methods import METHODS, find_method

    names = METHODS if arguments.method == ["all"] else arguments.method or default
    return [find_method(name) for name in names]


def settings_of(
    arguments: argparse.Namespace, case: Case, modes: "Sequence[Mode]", batches: Sequence[int], rounds: int
) -> "Settings":
    """Return how to measure: as was asked for, or these; on a GPU there are thirty rounds. Raises ArgumentError."""
    from alt_fast.measure.judge import Settings

    rounds = 30 if case.images.is_cuda else rounds
    return Settings(modes, arguments.batches or batches, rounds if arguments.rounds is None else arguments.rounds)


def run_judge(arguments: argparse.Namespace, case: Case) -> int:
    """Audit methods one by one."""
    from alt_fast.measure.lines import append_row
    from alt_fast.report.judgement import judgement_lines, write_judgement

    rows = []
    for row in judgements(arguments, case):
        print("\n".join(judgement_lines(row)), flush=True)
        rows.append(row)
        if arguments.out is not None:
            append_row(arguments.out, {**case.about, **row})
    if arguments.page is not None:
        write_judgement(arguments.page, case.about, rows, [], [])
    return 1 if any("refused" in row or not (row["verdict"] or POSSIBLE)["possible"] for row in rows) else 0


POSSIBLE = {"possible": True}
"""The verdict on no claim."""


def judgements(arguments: argparse.Namespace, case: Case) -> Iterator[dict[str, Any]]:
    """Yield a row for every method and r: what was found, or why the model does not take it."""
    from alt_fast.measure.faults import patched
    from alt_fast.measure.judge import judge
    from alt_fast.measure.observe import tower_shape
    from alt_fast.measure.timing import first_line
    from alt_fast.methods.public import public_method
    from alt_fast.progress import Progress

    settings = settings_of(arguments, case, arguments.modes or MODES, [1, 256] if case.images.is_cuda else [1, 8], 9)
    methods = chosen(arguments, ["tome"])
    checkouts = {name: Path(checkout) for name, checkout in arguments.public}
    if len(checkouts) < len(arguments.public):
        raise ArgumentError("--public takes one checkout of each method")
    if unused := sorted(checkouts.keys() - {method.name for method in methods}):
        raise ArgumentError(f"--public {', '.join(unused)} has no effect: judge it with --method")
    public = {name: public_method(name, checkout) for name, checkout in checkouts.items()}
    shape = tower_shape(case.model, case.images)
    work = [(method, r) for method in methods for r in arguments.r or [method.values[1]]]
    for method, r in Progress(work, "judge", "setting"):
        try:
            beside = {
                f"public {name}": patched(case.model, patch, r) for name, patch in public.items() if name == method.name
            }
            claimed = None if method.tokens is None else method.tokens(*shape, r)
            found = judge(method.name, case.model, method.apply, r, case.images, settings, claimed, beside)
        except Exception as error:  # methods are other people's code
            if isinstance(error, AltFastError) and len(work) == 1:
                raise
            if not isinstance(error, AltFastError):
                traceback.print_exc()
            yield {"method": method.name, "r": r, "refused": first_line(error)}
            continue
        yield {**found.as_row(), "verdict": None if arguments.claim is None else verdict_on(arguments.claim, found)}


def verdict_on(claim: float, found: "Judgement") -> dict[str, Any]:
    """Return whether a claim is possible, and what to say; None where there is no ceiling to say it by."""
    try:
        verdict = found.verdict(claim)
    except ArgumentError as error:
        return {"possible": None, "text": str(error)}
    return {"possible": verdict.possible, "text": str(verdict)}


def run_sweep(arguments: argparse.Namespace, case: Case) -> int:
    """Measure many settings, and say which are worth having."""
    from alt_fast.measure.sweep import front
    from alt_fast.report.judgement import sweep_lines, write_judgement

    rows = sweep_rows(arguments, case)
    measured = [row for row in rows if "skipped" not in row]
    best = front(measured)
    print("\n".join(sweep_lines(measured, best)))
    for row in rows:
        if "skipped" in row:
            print(f"  {row['method']}, r = {row['r']}: not measured: {row['skipped']}")
    if arguments.page is not None:
        write_judgement(arguments.page, case.about, [], measured, best)
    return 0 if measured else 1


def sweep_rows(arguments: argparse.Namespace, case: Case) -> list[dict[str, Any]]:
    """Measure every method at every r, those that --out has not from before, measured here by this code."""
    from alt_fast.measure.lines import append_row, read_rows
    from alt_fast.measure.provenance import hash_code
    from alt_fast.measure.sweep import sweep
    from alt_fast.methods import METHODS
    from alt_fast.model.hashing import hash_weights
    from alt_fast.progress import Progress

    settings = settings_of(arguments, case, ["inference"], [256 if case.images.is_cuda else 4], 5)
    batch = max(settings.batches)
    methods = chosen(arguments, METHODS)
    about = {name: value for name, value in case.about.items() if name != "provenance"}
    about |= {"batch": batch, "rounds": settings.rounds}
    modules = [method.name.partition(":")[0] for method in methods if ":" in method.name]
    about |= {"weights_sha256": hash_weights(case.model).hexdigest()[:16], "code_sha256": hash_code(modules)}
    here = {name: case.about["provenance"].get(name) for name in ("device", "threads", "python", "packages")}
    before = read_rows(arguments.out) if arguments.out is not None else []
    kept = [row for row in before if contains(row, about) and contains(row["provenance"], here)]

    def measured() -> Iterator[list[dict[str, Any]]]:
        for method in methods:
            values = list(dict.fromkeys(arguments.r or method.values))
            done = {str(row["r"]): row for row in kept if row["method"] == method.name}
            missing = [r for r in values if str(r) not in done]
            for row in sweep(case.model, method.apply, missing, case.images, batch, settings.rounds) if missing else ():
                done[str(row["r"])] = {**about, "method": method.name, **row}
                if arguments.out is not None:
                    append_row(arguments.out, done[str(row["r"])])
            yield [done[str(r)] for r in values]

    total = sum(len(set(arguments.r or method.values)) for method in methods)
    return [row for rows in Progress(measured(), "sweep", "setting", total, size=len) for row in rows]


def contains(row: dict[str, Any], values: dict[str, Any]) -> bool:
    """Return whether a row has these values."""
    return all(row.get(name) == value for name, value in values.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, run, argv, "interrupted; with --out a sweep goes on where it was")


if __name__ == "__main__":
    sys.exit(main())
