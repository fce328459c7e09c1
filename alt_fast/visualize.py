"""Pictures of merged tokens: the regions that an image's patches ended in.

python -m alt_fast.visualize cat.jpg --model timm:vit_base_patch16_224 --r 13 --out regions.png

model = alt_fast.apply_patch(timm.create_model("vit_base_patch16_224", pretrained=True), r=8, trace_source=True)
alt_fast.visualize.regions(Image.open("cat.jpg"), model).save("regions.png")
"""

import argparse
import colorsys
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps
from torch import nn
from torchvision.transforms.functional import normalize, to_tensor

from alt_fast.clip import WeightsError
from alt_fast.patch import apply_patch, merge_trace
from alt_fast.zoo import add_model_options, load_image_model

SMALLEST = 448  # pixels of the width that a picture has at least
_TINT = 0.42


def regions(
    image: Image.Image,
    model: nn.Module,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Image.Image:
    """The image, squeezed to the model's input, with every merged region of its patches tinted and outlined.

    image: of any size. model: an image model patched by `apply_patch(..., trace_source=True)`; it runs once. mean, std:
    of the model's normalisation, by channel; timm's and open_clip's models know their own. Raises ValueError when they,
    or the size of the input, are not to be found, or the model keeps no trace.
    """
    known = _preprocessing(model)
    mean, std = mean or known.get("mean"), std or known.get("std")
    if mean is None or std is None:
        raise ValueError(f"{type(model).__name__} does not say how its input is normalised: give mean and std")
    height, width = _input_size(model, known)
    patch = _patch_embedding(model)
    squeezed = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    parameter = next(model.parameters())
    pixels = normalize(to_tensor(squeezed), list(mean), list(std))[None].to(parameter.device, parameter.dtype)
    training = model.training
    try:
        with torch.inference_mode():
            _run(model.eval(), pixels)
    finally:
        model.train(training)
    grid = height // patch[0], width // patch[1]
    source = merge_trace(model).source[0].cpu().numpy()
    return draw_regions(squeezed, source[-grid[0] * grid[1] :].reshape(grid))


def draw_regions(
    image: Image.Image, labels: NDArray[np.integer[Any]], colors: Mapping[int, int] | None = None
) -> Image.Image:
    """Tint the regions of more than one patch and outline all. labels: [h, w], a patch's region, of an h x w grid.

    colors: a number for the colour of each region; by default the regions' own. Small images are enlarged.
    """
    scale = max(1, -(-SMALLEST // image.width))
    big = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    rows, columns = (
        np.arange(side) * cells // side for side, cells in zip((big.height, big.width), labels.shape, strict=True)
    )
    region = labels[rows[:, None], columns[None, :]]
    pixels = np.asarray(big, np.float32).copy()
    for number, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if count > 1:
            inside = region == number
            ink = np.array(region_rgb(int(number) if colors is None else colors[int(number)]), np.float32)
            pixels[inside] = (1 - _TINT) * pixels[inside] + _TINT * ink
    thick = max(1, big.width // 260)
    for wide, value in ((thick + 1, 40), (max(1, thick // 2), 245)):  # seen on light and on dark
        pixels[_borders(region, wide)] = value
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def region_rgb(number: int) -> tuple[int, int, int]:
    """The colour of a number: hues by the golden angle, so that neighbours differ."""
    red, green, blue = colorsys.hls_to_rgb(number * 137.508 % 360 / 360, 0.55, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def caption(image: Image.Image, lines: Sequence[str], size: int = 20) -> Image.Image:
    """The image on white, with lines of text of `size` pixels below it, shortened where they are too long."""
    step, margin = round(1.3 * size), size // 2
    made = Image.new("RGB", (image.width, image.height + step * len(lines) + margin), "white")
    made.paste(image, (0, 0))
    draw = ImageDraw.Draw(made)
    for number, line in enumerate(lines):
        text = _shortened(
            _printable(line), lambda part: draw.textlength(part, font_size=size), image.width - 2 * margin
        )
        draw.text((margin, image.height + margin // 2 + step * number), text, fill="black", font_size=size)
    return made


def _shortened(text: str, length: Callable[[str], float], limit: float) -> str:
    if length(text) <= limit:
        return text
    return next(
        (text[:n].rstrip(" ,") + "..." for n in range(len(text), 0, -1) if length(text[:n] + "...") <= limit), ""
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m alt_fast.visualize",
        description="Show which patches of an image merge in a vision transformer of timm or open_clip.",
    )
    parser.add_argument("image", metavar="IMAGE", help="picture file")
    parser.add_argument("--model", required=True, metavar="MODEL", help="timm:NAME or open_clip:NAME")
    add_model_options(parser)
    parser.add_argument("--r", type=int, default=8, metavar="R", help="tokens to merge per layer (default 8)")
    parser.add_argument("--out", required=True, metavar="FILE", help="picture to write, in a format that Pillow knows")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        with Image.open(arguments.image) as file:
            image = ImageOps.exif_transpose(file)  # as cameras mean it to be turned
        loaded = load_image_model(arguments.model, arguments.weights, arguments.image_size)
        model = apply_patch(loaded.model, r=arguments.r, trace_source=True)
        regions(image, model, loaded.mean, loaded.std).save(arguments.out)
    except (WeightsError, RuntimeError, ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def _printable(text: str) -> str:
    return text.encode("latin-1", "replace").decode("latin-1")  # what Pillow's own font has


def _borders(region: NDArray[np.integer[Any]], wide: int) -> NDArray[np.bool_]:
    """The pixels within `wide` of another region to the left or above."""
    border = np.zeros(region.shape, bool)
    for step in range(1, wide + 1):
        border[:, step:] |= region[:, step:] != region[:, :-step]
        border[step:] |= region[step:] != region[:-step]
    return border


def _preprocessing(model: nn.Module) -> dict[str, Any]:
    """What timm or open_clip keeps with a model: mean, std, and the input's size."""
    for holder in (model, getattr(model, "visual", None)):
        for attribute in ("pretrained_cfg", "preprocess_cfg"):
            config = getattr(holder, attribute, None)
            if isinstance(config, dict) and "mean" in config:
                return config
    return {}


def _input_size(model: nn.Module, known: Mapping[str, Any]) -> tuple[int, int]:
    for module in model.modules():  # an embedding knows what it was built for, which may not be what was published
        if (size := getattr(module, "img_size", None) or getattr(module, "image_size", None)) is not None:
            return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    size = getattr(getattr(model, "visual", model), "input_resolution", None) or known.get("size")
    if size is None:
        raise ValueError(f"{type(model).__name__} does not say how large its input is")
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _patch_embedding(model: nn.Module) -> tuple[int, int]:
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == module.stride:
            return module.kernel_size[0], module.kernel_size[1]
    raise ValueError(f"{type(model).__name__} has no convolution that makes patches")


def _run(model: Any, pixels: torch.Tensor) -> None:
    for method in ("encode_image", "get_image_features"):
        if hasattr(model, method):
            getattr(model, method)(pixels)
            return
    model(pixels)


if __name__ == "__main__":
    sys.exit(main())
