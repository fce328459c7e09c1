"""What merging does to a trained model's embeddings, beside merging at random: cosine to the un-merged, per r.

python -m benchmarks.quality timm:vit_base_patch16_224 --images FOLDER
python -m benchmarks.quality open_clip:ViT-B-16 --weights FILE_OR_TAG --images FOLDER --results FILE.jsonl
python -m benchmarks.quality timm:vit_base_patch16_dinov3 --images FOLDER --rope mean unit centroid survivor
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor, nn

import alt_fast
from alt_fast.data.images import SUFFIXES, read_image
from alt_fast.errors import AltFastError, ArgumentError
from alt_fast.measure.lines import append_row, check_rows
from alt_fast.measure.outputs import as_tensor
from alt_fast.model.image_models import load_image_model
from alt_fast.tome.rotary import begin
from alt_fast.tome.rules import RotaryRule, check_rule
from alt_fast.tome.tokens import Attended, Tokens, merge_step

BATCH = 16
RULES: tuple[RotaryRule, ...] = get_args(RotaryRule)


def find_images(folder: Path) -> list[Path]:
    """All images of a folder, by name. Raises ValueError for a folder with none."""
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} has no images ({', '.join(sorted(SUFFIXES))})")
    return paths


def read_images(paths: Sequence[Path], transform: Callable[[Image.Image], Tensor]) -> Tensor:
    """Images of one size, [B, 3, H, W]. Raises FileError naming an unreadable one."""
    return torch.stack([transform(read_image(path)) for path in paths])


def at_random(at: Attended) -> tuple[Tokens, Tensor]:
    """`merge_step` whose pairs are chosen blindly."""
    return merge_step(replace(at, key=torch.randn_like(at.key)))


def check_rope(model: nn.Module, image: Tensor, rules: Sequence[str]) -> None:
    """Raise ArgumentError for a rule that is none, and for a model whose positions are not rotary."""
    for rule in rules:
        check_rule(rule)
    alt_fast.apply_patch(model, r=0)
    with torch.inference_mode(), patch("alt_fast.tome.block.begin", wraps=begin) as seen:
        model(image[None])
    alt_fast.remove_patch(model)
    if not seen.called:
        raise ArgumentError(
            f"--rope {' '.join(rules)} is for towers with rotary positions, and this {type(model).__name__} has none"
        )


def embed(model: nn.Module, images: Tensor) -> Tensor:
    """What the model says of images [B, 3, H, W], a vector each [B, F]; features of several axes are one vector."""
    with torch.inference_mode():
        return torch.cat([as_tensor(model(batch)).flatten(1) for batch in images.split(BATCH)])


def quality(
    model: nn.Module, images: Tensor, reductions: list[int], rotary: RotaryRule = "mean"
) -> Iterator[dict[str, Any]]:
    """Per r: quartiles over the images of the cosine of merged to un-merged embeddings, by similarity and at random.

    rotary: what turns merged tokens of towers with rotary positions.
    """
    expected = embed(model, images)
    for r in reductions:
        alt_fast.apply_patch(model, r=r, rotary=rotary)
        found = {"merged": embed(model, images)}
        torch.manual_seed(0)
        alt_fast.apply_patch(model, r=r, rotary=rotary, step=at_random)
        found["random"] = embed(model, images)
        alt_fast.remove_patch(model)
        cosines = {how: torch.cosine_similarity(x, expected) for how, x in found.items()}
        levels = torch.tensor([0.25, 0.5, 0.75])
        yield {"r": r, **{how: [round(q, 5) for q in x.quantile(levels).tolist()] for how, x in cosines.items()}}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="timm:NAME, hf:NAME or open_clip:NAME")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint file, or open_clip's tag; by default timm's own")
    parser.add_argument("--image-size", type=int, metavar="N", help="pixels; by default the architecture's own")
    parser.add_argument("--r", type=int, nargs="+", default=[4, 8, 13, 16], help="tokens to merge per layer")
    parser.add_argument(
        "--rope", nargs="+", metavar="RULE", help="rules for rotary positions, one table each: " + ", ".join(RULES)
    )
    parser.add_argument("--results", type=Path, help="add rows to this file as they come, JSON lines")
    options = parser.parse_args(arguments)
    try:
        check_rows(options.results)
        loaded = load_image_model(options.model, options.weights, options.image_size)
        images = read_images(find_images(options.images), loaded.transform)
        if options.rope:
            check_rope(loaded.model, images[0], options.rope)
    except (AltFastError, ValueError) as e:
        parser.error(str(e))
    print(f"{options.model}, {len(images)} images: median cosine to the un-merged embedding (quartiles)")
    rules: Sequence[RotaryRule] = options.rope or ("mean",)
    for rule in rules:
        asked = {"rotary": rule} if options.rope else {}
        if asked:
            print(f"rotary positions by the rule {rule}:")
        for row in quality(loaded.model, images, options.r, rule):
            if options.results:
                append_row(options.results, {"quality": options.model, "images": len(images), **asked, **row})
            line = "   ".join(
                f"{how} {row[how][1]:.4f} ({row[how][0]:.4f} to {row[how][2]:.4f})" for how in ("merged", "random")
            )
            print(f"  r = {row['r']:<3} {line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
