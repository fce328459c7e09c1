"""Write the video vectors of a trained model for a list of videos; stop it, and it goes on where it was.

python -m alt_fast.extract --checkpoint runs/mine --list videos.csv --out features
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from alt_fast.checkpoint import CheckpointError, TrainedModel, load_model, write_atomically, write_json
from alt_fast.corpus.options import add_corpus_options, use_corpus
from alt_fast.data.annotations import AnnotationError, Video, read_classes, read_list
from alt_fast.data.dataset import EvalClips, batched
from alt_fast.data.loader import Failure, Loader, Loading, open_backend
from alt_fast.evaluate import EvalConfig
from alt_fast.run_folder import RunError, differences, pick_device

SHARD = 1000
"""Videos in a file."""


@torch.inference_mode()
def features(
    trained: TrainedModel, videos: Sequence[Video], testing: EvalConfig, device: torch.device
) -> tuple[Tensor, list[Failure]]:
    """Video vectors [N, d] fp32 (the paper's z, eq. 9), the mean over a video's views; zeros for unreadable ones."""
    clips = EvalClips(videos, trained.spec, testing.crops, testing.clips)
    loading = testing.loading
    backend, _ = open_backend(loading.loader, clips, device, threads=max(1, loading.workers))
    classes = torch.zeros(1, trained.model.alignment.entities.shape[1], device=device)
    vectors = []
    causes: dict[str, str] = {}
    for batch in Loader(clips, list(batched(clips.keys(), testing.batch_size)), backend, loading):
        vectors.append(trained.model(batch.video, classes).video.float().cpu())
        causes |= dict(batch.failures)
    readable = torch.tensor([str(video.path) not in causes for video in videos])
    mean = torch.cat(vectors).view(len(videos), clips.views, -1).mean(1)
    return mean * readable[:, None], [Failure(path, cause) for path, cause in causes.items()]


def extract(
    trained: TrainedModel, videos: Sequence[Video], testing: EvalConfig, device: torch.device, folder: Path
) -> list[Failure]:
    """Write `folder`/00000.safetensors and so on, each with "video" [n, d] and "label" [n] of SHARD videos.

    Beside each lies a list of its videos with the cause of what could not be read. Files that are there are kept.
    Returns all failures.
    """
    trained.model.eval()
    failures: list[Failure] = []
    shards = [videos[start : start + SHARD] for start in range(0, len(videos), SHARD)]
    for number, shard in enumerate(tqdm(shards, "features", unit="file", disable=None)):
        weights, index = (folder / f"{number:05}.{kind}" for kind in ("safetensors", "json"))
        if not weights.exists():
            vectors, failed = features(trained, shard, testing, device)
            causes = dict(failed)
            rows = [{"path": str(video.path), "unreadable": causes.get(str(video.path))} for video in shard]
            write_json(index, {"videos": rows})
            tensors = {"video": vectors, "label": torch.tensor([video.label for video in shard])}
            write_atomically(weights, partial(save_file, tensors))
        rows = json.loads(index.read_text())["videos"]
        failures += [Failure(row["path"], row["unreadable"]) for row in rows if row["unreadable"]]
    return failures


def fingerprint(trained: TrainedModel) -> str:
    """A hash of the weights and of the entities' embeddings."""
    digest = hashlib.sha256()
    for tensor in trained.model.state_dict().values():
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder or model.safetensors")
    parser.add_argument("--list", required=True, metavar="FILE", help="list of videos")
    parser.add_argument("--classes", metavar="FILE", help="class file of --list; default: the classes trained on")
    parser.add_argument("--root", metavar="DIR", help="folder that video paths start from; default: the list's")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder to write to")
    add_corpus_options(parser)
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="clips at once (default 32)")
    parser.add_argument("--crops", type=int, default=1, metavar="N", help="places in the picture (default 1)")
    parser.add_argument("--clips", type=int, default=1, metavar="N", help="moments in the video (default 1)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="decoding processes (default 2)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    arguments = parser.parse_args(argv)
    try:
        testing = EvalConfig(arguments.batch_size, arguments.crops, arguments.clips, Loading(workers=arguments.workers))
        trained = load_model(arguments.checkpoint)
        device = pick_device(arguments.device)
        trained.model.to(device)
        use_corpus(trained.model, arguments.corpus, arguments.categories)
        names = read_classes(arguments.classes) if arguments.classes else trained.classes
        videos, _ = read_list(arguments.list, names, arguments.root, "test")
        what = ("checkpoint", "list", "classes", "root", "corpus", "categories", "crops", "clips")
        settings = {name: getattr(arguments, name) for name in what}
        open_folder(arguments.out, settings | {"videos": len(videos), "weights": fingerprint(trained)})
        failures = extract(trained, videos, testing, device, arguments.out)
    except (AnnotationError, CheckpointError, RunError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    print(f"{len(videos)} videos in {arguments.out}")
    for failure in failures:
        print(f"unreadable, zeros: {failure.path}: {failure.cause}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
