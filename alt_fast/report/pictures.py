"""An explanation for slides: a picture grid, or a short video of the frames with their regions."""

from pathlib import Path

import numpy as np
from PIL import Image

from alt_fast.data.encode import write_video
from alt_fast.files import write_atomically
from alt_fast.report.drawing import caption, draw_regions, write_names
from alt_fast.report.seen import Seen

COLUMNS = 4
_GAP = 8  # pixels


def write_picture(path: Path, seen: Seen) -> None:
    """A PNG: frames with their regions and the best entity of each, the likeliest actions below. Raises FileError."""
    tiles = [_tile(seen, number) for number in range(len(seen.images))]
    width, height = tiles[0].size
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), "white")
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(tile, (column * (width + _GAP), row * (height + _GAP)))
    actions = "   ".join(f"{label} {100 * p:.1f} %" for label, p in seen.view.labels[:4])
    sheet = caption(sheet, [actions], 26)
    write_atomically(path, lambda partial: sheet.save(partial, "PNG"))


def write_overlay(path: Path, seen: Seen) -> None:
    """A VP9 video in WebM, every frame shown for a second with its entities and the likeliest action."""
    label, p = seen.view.labels[0]
    frames = [_tile(seen, number, f"{label} {100 * p:.1f} %") for number in range(len(seen.images))]
    rate = 10
    repeated = [np.asarray(frame) for frame in frames for _ in range(rate)]
    height, width = (side // 2 * 2 for side in repeated[0].shape[:2])  # VP9 halves the colours
    write_video(path, np.stack(repeated)[:, :height, :width], rate)


def _tile(seen: Seen, number: int, *more: str) -> Image.Image:
    frame = seen.view.frames[number]
    labels = frame.regions[-1].view(seen.grid).numpy()
    best = np.array([token.entities[0][0] if token.entities else "" for token in frame.tokens])
    picture = write_names(draw_regions(seen.images[number], labels, frame.colors), best[labels])
    named = [f"{name} {100 * share:.0f} %" for name, share in frame.ranking[:4]]
    lines = [f"{number + 1}. {', '.join(named[:2])}", ", ".join(named[2:]), *more]
    return caption(picture, lines)
