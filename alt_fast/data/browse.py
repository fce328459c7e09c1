"""A contact sheet of clips as the model sees them.

python -m alt_fast.data.browse train.csv --classes classes.csv --out sheet.png
python -m alt_fast.data.browse train.csv --out sheet.png --augment.jitter 1 --loader dali
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import jsonargparse
import numpy as np
import torch
from PIL import Image, ImageDraw

from alt_fast.data.annotations import AnnotationError, read_classes, read_list
from alt_fast.data.augment import MEAN_STD, AugmentConfig, ClipRecord
from alt_fast.data.dataset import NO_LABEL, ClipSpec, EvalClips, TrainClips
from alt_fast.data.loader import Batch, Loader, LoaderName, Loading, open_backend
from alt_fast.data.rng import Stream, generator

_CAPTION, _GAP = 16, 4  # pixels


def contact_sheet(batch: Batch, captions: Sequence[str], normalize: str) -> Image.Image:
    """A row for each clip of the batch, its caption above it."""
    count, frames, _, height, width = batch.video.shape
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in MEAN_STD[normalize])
    pixels = ((batch.video.cpu() * std + mean) * 255).round().clamp(0, 255).byte()
    sheet = Image.new("RGB", (frames * (width + _GAP), count * (_CAPTION + height + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (clip, caption) in enumerate(zip(pixels, captions, strict=True)):
        top = row * (_CAPTION + height + _GAP)
        draw.text((2, top + 2), caption.encode("latin-1", "replace").decode("latin-1"), fill="black")
        for column, frame in enumerate(clip):
            picture = Image.fromarray(np.ascontiguousarray(frame.permute(1, 2, 0).numpy()))
            sheet.paste(picture, (column * (width + _GAP), top + _CAPTION))
    return sheet


def describe(record: ClipRecord) -> str:
    """What was done to a clip, in a few words."""
    steps = [f"crop {record.crop[0]:g} x {record.crop[1]:g}"]
    steps += ["flipped"] * record.flip + ["coloured"] * bool(record.jitter) + ["gray"] * record.gray
    return ", ".join(steps)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 when a video could not be read."""
    parser = jsonargparse.ArgumentParser(
        prog="python -m alt_fast.data.browse", description="Write a contact sheet (PNG) of augmented clips of a list."
    )
    parser.add_argument("list", help="list of videos, in any form that training takes")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    parser.add_argument("--classes", help="class file, where the list does not name its classes")
    parser.add_argument("--root", help="folder that video paths start from; default: the list's")
    parser.add_argument("--subset", choices=["train", "test"], default="train", help="rows of a list that holds both")
    parser.add_argument("--count", type=int, default=8, help="clips (default 8)")
    parser.add_argument("--frames", type=int, default=8, help="frames of a clip (default 8)")
    parser.add_argument("--size", type=int, default=112, help="pixels of a frame's side (default 112)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the clips and their augmentation (default 0)")
    parser.add_argument("--epoch", type=int, default=0, help="another epoch, other augmentation (default 0)")
    parser.add_argument("--test", type=bool, default=False, help="true: views as in testing, not augmented")
    parser.add_argument("--loader", choices=list(get_args(LoaderName)), default="auto", help="who makes the clips")
    parser.add_class_arguments(AugmentConfig, "augment")
    arguments = parser.parse_args(list(argv) if argv is not None else None)
    try:
        config = parser.instantiate(arguments).augment
        names = read_classes(arguments.classes) if arguments.classes else None
        videos, classes = read_list(arguments.list, names, arguments.root, arguments.subset)
        chosen = generator(arguments.seed, Stream.SHUFFLE, arguments.epoch).permutation(len(videos))[: arguments.count]
        spec = ClipSpec(arguments.frames, (arguments.size, arguments.size), config)
        clips = EvalClips(videos, spec) if arguments.test else TrainClips(videos, spec, arguments.seed)
        keys = [(int(i), 0) if arguments.test else (arguments.epoch, int(i)) for i in chosen]
        backend, why = open_backend(arguments.loader, clips, torch.device("cpu"))
        (batch,) = Loader(clips, [keys], backend, Loading(arguments.loader))
    except (AnnotationError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    labels = ["no video" if label == NO_LABEL else classes[label] for label in batch.label.tolist()]
    captions = [f"{label}: {describe(clips.record(key))}" for label, key in zip(labels, keys, strict=True)]
    contact_sheet(batch, captions, config.normalize).save(arguments.out)
    print(f"{len(keys)} clips in {arguments.out} (loader {why})")
    for failure in batch.failures:
        print(f"unreadable: {failure.path}: {failure.cause}", file=sys.stderr)
    return 1 if batch.failures else 0


if __name__ == "__main__":
    sys.exit(main())
