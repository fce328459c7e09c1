"""An explanation as one HTML file: pictures and numbers inside, nothing from elsewhere."""

import base64
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from alt_fast.checkpoint import write_atomically

if TYPE_CHECKING:
    from alt_fast.explain import Explanation, View

PAGES = Path(__file__).parent / "pages"
STRONGEST = 6  # entities in the timeline


def timeline(view: "View") -> dict[str, Any]:
    """The entities ("names") with the largest shares over all frames, and their "shares" in each."""
    totals: Counter[str] = Counter()
    for frame in view.frames:
        totals.update(dict(frame.ranking))
    names = [name for name, _ in totals.most_common(STRONGEST)]
    by_frame = [dict(frame.ranking) for frame in view.frames]
    return {"names": names, "shares": [[shares.get(name, 0.0) for shares in by_frame] for name in names]}


def r_text(schedule: Sequence[int | float]) -> str:
    """r as a reader knows it: one number where all layers have the same."""
    return ", ".join(map(str, schedule if len(set(schedule)) > 1 else schedule[:1]))


def page_data(explanation: "Explanation") -> dict[str, Any]:
    """What the page's script reads."""
    return {
        "video": explanation.video,
        "grid": explanation.grid,
        "images": [_data_uri(image) for image in explanation.images],
        "own": explanation.own,
        "views": [
            {
                "r": r_text(view.r),
                "layers": len(view.r),
                "labels": view.labels,
                "attention": view.attention,
                "timeline": timeline(view),
                "frames": [
                    {
                        "regions": frame.regions.tolist(),
                        "colors": frame.colors,
                        "entities": [token.entities for token in frame.tokens],
                        "ranking": frame.ranking,
                    }
                    for frame in view.frames
                ],
            }
            for view in explanation.views
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
    page, style, script = ((PAGES / name).read_text(encoding="utf-8") for name in (template, "common.css", "common.js"))
    return page.replace("/*STYLE*/", style).replace("/*SCRIPT*/", script).replace("/*DATA*/", text)


def _data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
