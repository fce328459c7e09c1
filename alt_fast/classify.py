"""Name the action in videos.

python -m alt_fast.classify clip.mp4 --checkpoint runs/mine --top-k 3
python -m alt_fast.classify clip.mp4 --head clip --pretrained openai --labels "playing guitar" "surfing"
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alt_fast.checkpoint import CheckpointError, TrainedModel, load
from alt_fast.clip import WeightsError
from alt_fast.corpus.options import add_corpus_options, use_corpus
from alt_fast.data.annotations import AnnotationError, read_classes
from alt_fast.data.augment import AugmentConfig, apply, view_record
from alt_fast.data.decode import VideoError, decode_clip
from alt_fast.model import ALT, ModelConfig
from alt_fast.run_folder import RunError, pick_device
from alt_fast.text import TEMPLATES


def load_video(path: str | Path, trained: TrainedModel) -> Tensor:
    """The middle frames of a video's segments as the model takes them, [1, T, 3, H, W]. Raises VideoError."""
    spec = trained.spec
    record = view_record(spec.augment, spec.num_frames)
    return apply(record, decode_clip(path, record.positions), spec.size, spec.augment)[None]


@torch.inference_mode()
def classify(
    path: str | Path, trained: TrainedModel, classes: Tensor, labels: Sequence[str], head: str
) -> dict[str, Any]:
    """Probabilities of the labels, and the entities that each frame aligned to.

    classes: embeddings of `labels`, [I, d], on the model's device. head: "alt", or "clip" for CLIP's own zero-shot
    scores. Returns {"video", "labels": [{"label", "probability"}] by falling probability, "frames": per frame a list of
    {"entity", "category", "share"} by falling share of the frame's tokens}; "frames" is empty where nothing aligns.
    """
    video = load_video(path, trained).to(classes.device)
    entity = None
    if head == "clip":
        logits = trained.model.clip_logits(video, classes)
    else:
        logits, _, entity = trained.model(video, classes)
    probabilities = logits[0].float().softmax(-1).tolist()
    ranking = sorted(zip(probabilities, labels, strict=True), key=lambda pair: -pair[0])
    frames = [] if entity is None else [_shares(trained.model, frame) for frame in entity[0].tolist()]
    return {
        "video": str(path),
        "labels": [{"label": label, "probability": probability} for probability, label in ranking],
        "frames": [frame for frame in frames if frame],
    }


def _shares(model: ALT, indices: Sequence[int]) -> list[dict[str, Any]]:
    if not indices or model.corpus is None:
        return []
    entities = model.corpus.entities
    return [
        {"entity": entities[i].unit, "category": entities[i].category, "share": count / len(indices)}
        for i, count in Counter(indices).most_common()
    ]


def read_labels(arguments: Sequence[str]) -> list[str]:
    """Labels from the command line: texts, or one file (a class file, or a label a line)."""
    if len(arguments) == 1 and Path(arguments[0]).is_file():
        path = Path(arguments[0])
        if path.suffix == ".txt":
            return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return read_classes(path)
    return list(arguments)


def open_model(arguments: argparse.Namespace) -> TrainedModel:
    """The checkpoint, or a bare CLIP for --head clip. Raises RunError for options that do not go together."""
    if arguments.checkpoint is not None:
        return load(arguments.checkpoint)
    if arguments.head != "clip":
        raise RunError(
            "--head alt needs --checkpoint RUN; without training, use --head clip with --backbone and --pretrained"
        )
    if arguments.labels is None:
        raise RunError("--head clip without a checkpoint needs --labels")
    config = ModelConfig(arguments.backbone, arguments.pretrained, r=arguments.r, query="frame", depth=1)
    return TrainedModel(ALT(config, None).eval(), [], list(TEMPLATES), AugmentConfig(normalize="clip"))


def print_result(result: dict[str, Any], top_k: int) -> None:
    """A readable table."""
    print(result["video"])
    for row in result["labels"][:top_k]:
        print(f"  {row['probability']:7.1%}  {row['label']}")
    for number, frame in enumerate(result["frames"], start=1):
        aligned = ", ".join(f"{row['entity']} {row['share']:.0%}" for row in frame[:4])
        print(f"  frame {number}: {aligned}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m alt_fast.classify", description="Name the action in videos.")
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video file")
    parser.add_argument("--checkpoint", metavar="RUN", help="run folder or model.safetensors of alt_fast.train")
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="LABEL",
        help="texts to choose from, or one file; default: the classes trained on",
    )
    add_corpus_options(parser)
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="labels to print (default 5)")
    parser.add_argument(
        "--head", choices=("alt", "clip"), default="alt", help="ALT, or zero-shot CLIP on merged tokens"
    )
    parser.add_argument("--backbone", default="ViT-B-16", help="--head clip without a checkpoint: open_clip model name")
    parser.add_argument(
        "--pretrained", metavar="TAG|FILE", default="openai", help="... and its weights (default openai)"
    )
    parser.add_argument("--r", type=int, default=8, help="... and the tokens merged away per layer (default 8)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    parser.add_argument("--json", action="store_true", help="print JSON, all labels and entities")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 when something could not be read."""
    arguments = parser().parse_args(argv)
    if arguments.top_k < 1:
        parser().error(f"--top-k must be >= 1, got {arguments.top_k}")
    try:
        device = pick_device(arguments.device)
        trained = open_model(arguments)
        labels = read_labels(arguments.labels) if arguments.labels else trained.classes
        trained.model.to(device)
        use_corpus(trained.model, arguments.corpus, arguments.categories)
        classes = trained.model.text.classes(labels, trained.templates)
    except (AnnotationError, CheckpointError, RunError, WeightsError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    status, results = 0, []
    for path in arguments.videos:
        try:
            results.append(classify(path, trained, classes, labels, arguments.head))
        except VideoError as e:
            status = 1
            results.append({"video": e.path, "error": e.cause})
    if arguments.json:
        print(json.dumps(results, indent=2))
        return status
    for result in results:
        if "error" in result:
            print(f"error: {result['video']}: {result['error']}", file=sys.stderr)
        else:
            print_result(result, arguments.top_k)
    return status


if __name__ == "__main__":
    sys.exit(main())
