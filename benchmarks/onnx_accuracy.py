"""Top-1 of an exported model's ONNX files on a list of videos, with weights of 32 and of 8 bits, beside PyTorch's.

    alt-fast export --checkpoint RUN --out mine --onnx --int8
    python -m benchmarks.onnx_accuracy mine [--list FILE --classes FILE] [--workers N] [--out FILE]

The same clips go through all. "same answer": the share of readable videos whose likeliest class is PyTorch's.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from alt_fast import cli
from alt_fast.data.annotations import Video, read_list
from alt_fast.data.config import Loading
from alt_fast.data.dataset import EvalClips
from alt_fast.errors import RunError
from alt_fast.inference.lists import run_lists
from alt_fast.inference.onnx import METADATA
from alt_fast.inference.scoring import EvalConfig, Result, mean_over_views
from alt_fast.inference.trained import TrainedModel, load
from alt_fast.measure.lines import append_row, check_rows

FILES = {"ONNX": ".onnx", "ONNX, int8": ".int8.onnx"}
"""Runs, by the ending of their files."""


def session(path: Path) -> onnxruntime.InferenceSession:
    """Open an ONNX file on the CPU, with as many threads as PyTorch takes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # they would take the next one's cores
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def halves(folder: Path, ending: str, classes: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what scores videos [B, T, 3, H, W] by frame encoder and decoder of an exported folder: [B, I]."""
    encoder, decoder = (session(folder / f"{part}{ending}") for part in ("frame_encoder", "decoder"))

    def score(video: Tensor) -> Tensor:
        seen = encoder.run(["frame", "pooled"], {"frames": video.flatten(0, 1).numpy()})
        frame, pooled = (features.reshape(*video.shape[:2], -1) for features in seen)
        inputs = {"frame": frame, "pooled": pooled, "classes": classes.numpy()}
        return torch.from_numpy(decoder.run(None, inputs)[0])

    return score


def measure(
    folder: Path, trained: TrainedModel, videos: Sequence[Video], classes: Tensor, testing: EvalConfig
) -> dict[str, Result]:
    """Score the videos by PyTorch and by each of FILES that is in the folder. classes: [I, d].

    Raises RunError where the folder has no ONNX files.
    """
    for part in ("frame_encoder", "decoder"):
        if not (folder / f"{part}.onnx").exists():
            raise RunError(f"{folder} has no {part}.onnx: alt-fast export --onnx frame_encoder decoder makes it")
    about = session(folder / "frame_encoder.onnx").get_modelmeta().custom_metadata_map[METADATA]
    head = json.loads(about)["head"]
    runs = {"PyTorch": lambda video: trained.model.probabilities(video, classes, head)[0]}
    runs |= {
        name: halves(folder, ending, classes)
        for name, ending in FILES.items()
        if (folder / f"frame_encoder{ending}").exists()
    }
    labels = torch.tensor([video.label for video in videos])
    found = {}
    for name, score in runs.items():
        clips = EvalClips(videos, trained.spec, testing.crops, testing.clips)
        scores, causes, ways = mean_over_views(clips, testing, trained.device, score, len(classes), name)
        readable = torch.tensor([str(video.path) not in causes for video in videos])
        found[name] = Result(scores * readable[:, None], labels, [], readable, ways)
    return found


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    title = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.onnx_accuracy", description=title)
    parser.add_argument("folder", type=Path, help="of alt-fast export --onnx")
    cli.add_list(parser, False, "videos to test on; default: the lists of the run", "those trained on")
    cli.add_workers(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="also add a row for every list, JSON lines")
    return parser


def work(options: argparse.Namespace) -> int:
    """Print a table for every list."""
    check_rows(options.out)
    trained = load(options.folder)
    if options.list is None:
        lists = run_lists(options.folder, trained)
    else:
        names = options.classes or trained.classes
        lists = [(options.list, *read_list(options.list, names, options.root, "test"))]
    testing = EvalConfig(loading=Loading("torch", options.workers, options.timeout))
    for name, videos, names in lists:
        found = measure(options.folder, trained, videos, trained.embed(names), testing)
        answers = found["PyTorch"].scores.argmax(1)
        runs = {}
        print(f"{name}: {len(videos)} videos")
        for run, result in found.items():
            same = (result.scores.argmax(1) == answers)[result.readable].float().mean().item()
            runs[run] = {"top1": result.top(1), "same_answer": same}
            print(f"  {run:10}  top-1 {result.top(1):6.1%}  same answer {same:6.1%}", flush=True)
        if options.out is not None:
            append_row(options.out, {"folder": str(options.folder), "list": name, "videos": len(videos), "runs": runs})
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
