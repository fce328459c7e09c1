"""Pictures of any mode as RGB."""

import numpy as np
from PIL import Image, ImageOps

from alt_fast.errors import ArgumentError


def as_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture in RGB, turned as its camera meant it; of 16 bits a channel, the upper eight.

    Raises ArgumentError for 32 bits a channel, whose range no file tells.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ArgumentError(f"pictures have 8 or 16 bits a channel, got mode {picture.mode}, of 32")
    return picture.convert("RGB")
