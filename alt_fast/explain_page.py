"""An explanation as one HTML file: pictures and numbers inside, nothing from elsewhere."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from alt_fast.checkpoint import write_atomically

if TYPE_CHECKING:
    from alt_fast.explain import Explanation

PAGES = Path(__file__).parent / "pages"
STRONGEST = 6  # entities in the timeline


@dataclass(frozen=True)
class Timeline:
    """Shares of the strongest entities by frame."""

    names: list[str]
    shares: list[list[float]]


def timeline(explanation: "Explanation") -> Timeline:
    """The entities with the largest shares over all frames, and their share in each."""
    totals: dict[str, float] = {}
    for frame in explanation.frames:
        for name, share in frame.ranking:
            totals[name] = totals.get(name, 0.0) + share
    names = sorted(totals, key=lambda name: -totals[name])[:STRONGEST]
    by_frame = [dict(frame.ranking) for frame in explanation.frames]
    return Timeline(names, [[shares.get(name, 0.0) for shares in by_frame] for name in names])


def page_data(explanation: "Explanation") -> dict[str, Any]:
    """What the page's script reads."""
    strongest = timeline(explanation)
    return {
        "video": explanation.video,
        "labels": explanation.labels,
        "grid": explanation.grid,
        "attention": explanation.attention,
        "timeline": {"names": strongest.names, "shares": strongest.shares},
        "frames": [
            {
                "image": _data_uri(frame.pixels),
                "regions": frame.regions.tolist(),
                "colors": frame.colors,
                "tokens": [{"size": token.size, "entities": token.entities} for token in frame.tokens],
                "ranking": frame.ranking,
            }
            for frame in explanation.frames
        ],
    }


def write_page(path: Path, explanation: "Explanation") -> None:
    """Write the page. Raises CheckpointError when it cannot be written."""
    page = fill_page("explain.html", page_data(explanation))
    write_atomically(path, lambda partial: partial.write_text(page, encoding="utf-8"))


def fill_page(template: str, data: Any) -> str:
    """A page with its data inside, as JSON."""
    text = json.dumps(data, separators=(",", ":"))
    text = text.replace("<", "\\u003c")  # nothing in it can end the script element
    page, common = ((PAGES / name).read_text(encoding="utf-8") for name in (template, "common.css"))
    return page.replace("/*COMMON*/", common).replace("/*DATA*/", text)


def _data_uri(pixels: Tensor) -> str:
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
