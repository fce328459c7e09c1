"""A contact sheet of clips as the model sees them.

alt-fast data browse train.csv --classes classes.csv --out sheet.png
alt-fast data browse train.csv --out sheet.png --augment.jitter 1 --loader dali
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from alt_fast.data.augment import ClipRecord, unpaint
from alt_fast.data.batch import Batch

_CAPTION, _GAP = 16, 4  # pixels


def contact_sheet(batch: Batch, captions: Sequence[str], normalize: str) -> Image.Image:
    """Draw a row for each clip of the batch, its caption above it."""
    count, frames, _, height, width = batch.video.shape
    pixels = unpaint(batch.video, normalize).cpu()
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
    """Say what was done to a clip, in a few words."""
    steps = [f"crop {record.crop[0]:g} x {record.crop[1]:g}"]
    steps += ["flipped"] * record.flip + ["coloured"] * bool(record.jitter) + ["gray"] * record.gray
    return ", ".join(steps)
