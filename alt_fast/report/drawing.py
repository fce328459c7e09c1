"""Pictures of merged regions, with captions."""

import colorsys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SMALLEST = 448  # pixels of the width that a picture has at least

_TINT = 0.42


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


def write_names(image: Image.Image, names: NDArray[np.str_], size: int = 20) -> Image.Image:
    """Write every name once onto the image, where it is among its own. names: [h, w], that of each patch, or "".

    Of names that would overlap, that of fewer patches stays: the thing, not the ground.
    """
    made = image.copy()
    draw = ImageDraw.Draw(made)
    room = image.width - 4

    def length(text: str) -> float:
        return draw.textlength(text, font_size=size)

    patch = np.array([image.height, image.width]) / names.shape
    written: list[tuple[float, float, float, float]] = []
    for name in sorted(set(names.flat) - {""}, key=lambda name: (int((names == name).sum()), name)):
        own = names == name
        around = np.lib.stride_tricks.sliding_window_view(np.pad(own, 1), (3, 3)).sum((2, 3))
        places = np.argwhere(own)
        off_centre = np.square(places - places.mean(0)).sum(1)
        y, x = (places[np.lexsort((off_centre, -around[own]))[0]] + 0.5) * patch
        text = _shortened(_printable(name), length, room)
        half = length(text) / 2
        x = min(max(x, half + 2), room + 2 - half)
        box = (x - half, y - size / 2, x + half, y + size / 2)
        if not any(_overlap(box, other) for other in written):
            written.append(box)
            draw.text((x, y), text, "white", anchor="mm", font_size=size, stroke_width=2, stroke_fill="black")
    return made


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


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    left, top, right, bottom = one
    return left < other[2] and other[0] < right and top < other[3] and other[1] < bottom


def _printable(text: str) -> str:
    """Return a text in one line, of the characters that Pillow's own font has."""
    return " ".join(text.split()).encode("latin-1", "replace").decode("latin-1")


def _borders(region: NDArray[np.integer[Any]], wide: int) -> NDArray[np.bool_]:
    """The pixels within `wide` of another region to the left or above."""
    border = np.zeros(region.shape, bool)
    for step in range(1, wide + 1):
        border[:, step:] |= region[:, step:] != region[:, :-step]
        border[step:] |= region[step:] != region[:-step]
    return border
