"""Pictures of merged tokens: the regions that an image's patches ended in.

alt-fast visualize cat.jpg --model timm:vit_base_patch16_224 --r 13 --out regions.png

model = alt_fast.apply_patch(timm.create_model("vit_base_patch16_224", pretrained=True), r=8, trace_source=True)
alt_fast.visualize.regions(Image.open("cat.jpg"), model).save("regions.png")
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alt_fast import cli
from alt_fast.errors import FileError

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn


def regions(
    image: "Image.Image",
    model: "nn.Module",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | tuple[int, int] | None = None,
) -> "Image.Image":
    """Draw the image, squeezed to the model's input, with every merged region of its patches tinted and outlined.

    image: of any size. model: one that takes pixels alone, patched by `apply_patch(..., trace_source=True)`; it runs
    once. mean, std: of the model's normalisation, by channel; timm's and open_clip's models know their own. size: of
    the model's input, one number or height and width, where it does not say itself. Raises ArgumentError when these are
    not to be found, the model keeps no trace, or its tokens are no grid of patches.
    """
    from alt_fast.report.drawing import draw_regions
    from alt_fast.tome.regions import image_regions

    return draw_regions(*image_regions(image, model, mean, std, size))


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = cli.make_parser(
        "visualize", "Show which patches of an image merge in a vision transformer of timm, transformers or open_clip."
    )
    parser.add_argument("image", metavar="IMAGE", help="picture file")
    parser.add_argument("--model", required=True, metavar="MODEL", help="timm:NAME, hf:NAME or open_clip:NAME")
    parser.add_argument(
        "--weights", metavar="FILE", help="checkpoint file, a tag of open_clip, or random; default: the library's"
    )
    parser.add_argument("--image-size", type=int, metavar="N", help="pixels; by default the architecture's own")
    cli.add_r(parser, default=8)
    cli.add_out(parser, "FILE", "picture to write, in a format that Pillow knows")
    cli.add_device(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Draw the picture."""
    from PIL import Image

    from alt_fast.data.images import read_image
    from alt_fast.distributed import pick_device
    from alt_fast.files import check_place, write_atomically
    from alt_fast.model.image_models import load_image_model
    from alt_fast.tome.patch import apply_patch

    cli.check_out(arguments)
    check_place(arguments.out)
    suffix = Path(arguments.out).suffix
    kind = Image.registered_extensions().get(suffix.lower())
    if kind not in Image.SAVE:
        raise FileError(f"cannot write {arguments.out}: {suffix or 'no suffix'} is no format that Pillow writes")
    if kind in ("ICO", "ICNS"):
        raise FileError(f"cannot write {arguments.out}: {suffix} holds icons, of sizes of their own")
    image = read_image(Path(arguments.image))
    loaded = load_image_model(arguments.model, arguments.weights, arguments.image_size)
    model = apply_patch(loaded.model.to(pick_device(arguments.device)), r=arguments.r, trace_source=True)
    picture = regions(image, model, loaded.mean, loaded.std, arguments.image_size)
    try:
        write_atomically(arguments.out, picture.save)
    except ValueError as e:  # more pixels than the format holds
        raise FileError(f"cannot write {arguments.out}: {e}") from e
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
