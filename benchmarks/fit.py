"""A schedule fitted to some scenes beside the constant r of the same MACs, on frames of another scene.

python -m benchmarks.fit timm:vit_small_patch14_dinov2 --weights FILE --image-size 224 --images FOLDER \\
    --results FILE.jsonl

Frames that are called alike but for the number at their names' end, "bikes-01.png", are of one scene. Each scene is
held out in turn. Agreement is the cosine of merged to un-merged embeddings.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import alt_fast
from alt_fast.errors import AltFastError
from alt_fast.measure.counting import count_macs
from alt_fast.measure.lines import append_row, check_rows
from alt_fast.model.image_models import load_image_model
from benchmarks.quality import embed, find_images, read_images


def by_scene(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Frames by the name of their scene. Raises ValueError when there is one scene only."""
    scenes: dict[str, list[Path]] = {}
    for path in paths:
        scenes.setdefault(re.sub(r"[-_ ]?\d+$", "", path.stem), []).append(path)
    if len(scenes) < 2:
        raise ValueError(f"--images must be frames of two scenes, SCENE-NUMBER.png, got those of {', '.join(scenes)}")
    return scenes


def agreement(model: nn.Module, images: Tensor, schedule: Sequence[int]) -> dict[str, Any]:
    """Mean and quartiles over the images of the cosine of merged to un-merged embeddings."""
    expected = embed(model, images).double()
    alt_fast.apply_patch(model, schedule)
    cosines = torch.cosine_similarity(embed(model, images).double(), expected)
    alt_fast.remove_patch(model)
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=cosines.dtype)
    return {
        "mean": round(float(cosines.mean()), 6),
        "quartiles": [round(q, 6) for q in cosines.quantile(levels).tolist()],
    }


def macs(model: nn.Module, image: Tensor, schedule: Sequence[int]) -> int:
    """MACs of one image [1, 3, H, W]."""
    alt_fast.apply_patch(model, schedule)
    with torch.no_grad():
        counted = count_macs(lambda: model(image))
    alt_fast.remove_patch(model)
    return counted


def compare(
    model: nn.Module, scenes: dict[str, Tensor], reductions: Sequence[int], max_evaluations: int
) -> Iterator[dict[str, Any]]:
    """Per r and scene: fit to the others, and agreement on it by the constant r and by the fitted schedule."""
    for r in reductions:
        for held_out, images in scenes.items():
            fitted_to = [name for name in scenes if name != held_out]
            seen = torch.cat([scenes[name] for name in fitted_to])
            schedule = alt_fast.fit_schedule(model, seen, r=r, max_evaluations=max_evaluations)
            schedules = {"constant": [r] * len(schedule), "fitted": schedule}
            yield {
                "r": r,
                "fitted_to": fitted_to,
                "held_out": held_out,
                "images": [len(seen), len(images)],
                "schedule": schedule,
                "macs": {how: macs(model, images[:1], s) for how, s in schedules.items()},
                "macs_unmerged": macs(model, images[:1], [0] * len(schedule)),
                "on_fitted": {how: agreement(model, seen, s) for how, s in schedules.items()},
                "on_held_out": {how: agreement(model, images, s) for how, s in schedules.items()},
            }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="timm:NAME, hf:NAME or open_clip:NAME")
    parser.add_argument("--images", type=Path, required=True, help="folder of frames, SCENE-NUMBER.png")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint file, or open_clip's tag; by default timm's own")
    parser.add_argument("--image-size", type=int, metavar="N", help="pixels; by default the architecture's own")
    parser.add_argument(
        "--r", type=int, nargs="+", default=[8, 13], help="constant reductions, whose MACs are the budgets"
    )
    parser.add_argument(
        "--evaluations", type=int, default=60, metavar="N", help="schedules that each fit tries at most"
    )
    parser.add_argument("--results", type=Path, help="add rows to this file as they come, JSON lines")
    options = parser.parse_args(arguments)
    try:
        check_rows(options.results)
        loaded = load_image_model(options.model, options.weights, options.image_size)
        paths = by_scene(find_images(options.images))
        scenes = {name: read_images(frames, loaded.transform) for name, frames in paths.items()}
        print(f"{options.model}: mean and median cosine to the un-merged embedding, on the scene held out")
        for row in compare(loaded.model, scenes, options.r, options.evaluations):
            if options.results:
                append_row(options.results, {"fit": options.model, **row})
            constant, fitted = (
                f"{found['mean']:.5f}, {found['quartiles'][1]:.5f}" for found in row["on_held_out"].values()
            )
            print(f"  r = {row['r']:<3} {row['held_out']}: constant {constant}   fitted {fitted}   {row['schedule']}")
    except (AltFastError, ValueError) as e:
        parser.error(str(e))
    return 0


if __name__ == "__main__":
    sys.exit(main())
