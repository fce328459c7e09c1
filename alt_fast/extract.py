"""Write the video vectors of a trained model for a list of videos; stop it, and it goes on where it was.

python -m alt_fast.extract --checkpoint runs/mine --list videos.csv --out features
torchrun --nproc-per-node 8 -m alt_fast.extract --checkpoint runs/mine --list videos.csv --out features
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from alt_fast.cache import hash_weights
from alt_fast.checkpoint import CheckpointError, TrainedModel, write_atomically, write_json
from alt_fast.data.annotations import AnnotationError, Video, read_classes, read_list
from alt_fast.data.dataset import EvalClips
from alt_fast.data.loader import Failure
from alt_fast.distributed import World, join_world, leave_world
from alt_fast.evaluate import add_testing_options, read_testing_options
from alt_fast.run_folder import RunError, differences
from alt_fast.scoring import EvalConfig, mean_over_views


def features(
    trained: TrainedModel, videos: Sequence[Video], testing: EvalConfig, device: torch.device
) -> tuple[Tensor, list[Failure]]:
    """Video vectors [N, d] fp32 (the paper's z, eq. 9), the mean over a video's views; zeros for unreadable ones."""
    clips = EvalClips(videos, trained.spec, testing.crops, testing.clips)
    width = trained.model.alignment.entities.shape[1]
    mean, causes, _ = mean_over_views(clips, testing, device, lambda video: trained.model.describe(video)[0], width)
    readable = torch.tensor([str(video.path) not in causes for video in videos])
    return mean * readable[:, None], [Failure(path, cause) for path, cause in causes.items()]


def extract(
    trained: TrainedModel,
    videos: Sequence[Video],
    testing: EvalConfig,
    folder: Path,
    per_file: int,
    world: World,
) -> list[Failure]:
    """Write `folder`/00000.safetensors and so on, each with "video" [n, d] and "label" [n] of `per_file` videos.

    Beside each lies a list of its videos with the cause of what could not be read. Files that are there are kept; the
    processes share the others. Returns all failures.
    """
    device = trained.model.eval().logit_scale.device
    count = math.ceil(len(videos) / per_file)
    missing = [number for number in range(count) if not (folder / f"{number:05}.safetensors").exists()]
    world.gather(None)  # all have looked before any writes
    for number in tqdm(
        missing[world.rank :: world.size], "features", unit="file", disable=None if world.main else True
    ):
        shard = videos[number * per_file : (number + 1) * per_file]
        vectors, failed = features(trained, shard, testing, device)
        causes = dict(failed)
        rows = [{"path": str(video.path), "unreadable": causes.get(str(video.path))} for video in shard]
        write_json(folder / f"{number:05}.json", {"videos": rows})
        tensors = {"video": vectors, "label": torch.tensor([video.label for video in shard])}
        write_atomically(folder / f"{number:05}.safetensors", partial(save_file, tensors))
    world.gather(None)  # all have written
    lists = [json.loads((folder / f"{number:05}.json").read_text())["videos"] for number in range(count)]
    return [Failure(row["path"], row["unreadable"]) for rows in lists for row in rows if row["unreadable"]]


def open_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or check that it was begun with the same settings. Raises RunError."""
    recorded = folder / "config.json"
    if recorded.exists():
        before = json.loads(recorded.read_text())
        changed = differences(before, settings)
        if changed:
            raise RunError(f"{folder} was begun otherwise: {'; '.join(changed)}. Choose another --out")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(recorded, settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 when a video could not be read (its vector is zeros)."""
    parser = argparse.ArgumentParser(
        prog="python -m alt_fast.extract",
        description="Write the video vectors of a list of videos. The same command goes on after an interruption.",
    )
    add_testing_options(parser)
    parser.add_argument("--list", required=True, metavar="FILE", help="list of videos")
    parser.add_argument("--classes", metavar="FILE", help="class file of --list; default: the classes trained on")
    parser.add_argument("--root", metavar="DIR", help="folder that video paths start from; default: the list's")
    parser.add_argument("--per-file", type=int, default=1000, metavar="N", help="videos in a file (default 1000)")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder to write to")
    arguments = parser.parse_args(argv)
    world = join_world(arguments.device)
    try:
        if arguments.per_file < 1:
            raise RunError(f"--per-file must be >= 1, got {arguments.per_file}")
        trained, testing = read_testing_options(arguments)
        names = read_classes(arguments.classes) if arguments.classes else trained.classes
        videos, _ = read_list(arguments.list, names, arguments.root, "test")
        what = ("checkpoint", "list", "classes", "root", "corpus", "categories", "r", "crops", "clips", "per_file")
        settings = {name: getattr(arguments, name) for name in what}
        settings |= {"videos": len(videos), "weights": hash_weights(trained.model).hexdigest()}
        if world.main:
            open_folder(arguments.out, settings)
        failures = extract(trained, videos, testing, arguments.out, arguments.per_file, world)
    except (AnnotationError, CheckpointError, RunError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    finally:
        leave_world()
    if not world.main:
        return 0
    print(f"{len(videos)} videos in {arguments.out}")
    for failure in failures:
        print(f"unreadable, zeros: {failure.path}: {failure.cause}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
