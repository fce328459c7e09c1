"""An explanation, or a test, as one HTML file: pictures and numbers inside, nothing from elsewhere."""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from alt_fast.files import write_text
from alt_fast.report.seen import Seen, View, strongest

PAGES = Path(__file__).parent / "pages"

DECIDED_FROM = 0.05
"""Entities decided when others change the first action's probability by this share of it, up or down."""


def timeline(view: View) -> dict[str, Any]:
    """Return the entities ("names") with the largest shares over all frames, and their "shares" in each."""
    names = strongest(view.frames)
    by_frame = [dict(frame.ranking) for frame in view.frames]
    return {"names": names, "shares": [[shares.get(name, 0.0) for shares in by_frame] for name in names]}


def owed_text(view: View) -> str:
    """Say what the first action owes to the entities; empty where nothing aligns."""
    if view.unaligned is None:
        return ""
    label, p = view.labels[0]
    without = f"{100 * view.unaligned:.1f} %, not {100 * p:.1f} %"
    decided = abs(view.unaligned - p) > DECIDED_FROM * p
    end = "." if decided else ": what the regions aligned to did not decide."
    return f"With entities drawn at random instead, {label} would have {without}{end}"


def r_text(schedule: Sequence[int | float]) -> str:
    """Spell r as a reader knows it: one number where all layers have the same."""
    return ", ".join(f"{r:g}" for r in (schedule if len(set(schedule)) > 1 else schedule[:1]))


def page_data(seen: Seen) -> dict[str, Any]:
    """Return what the page's script reads."""
    return {
        "video": seen.video,
        "grid": seen.grid,
        "images": [data_uri(image) for image in seen.images],
        "own": seen.own,
        "probed": seen.probed,
        "views": [
            {
                "r": r_text(view.r),
                "layers": len(view.r),
                "labels": view.labels,
                "owed": owed_text(view),
                "attention": view.attention,
                "maps": [[name, (100 * shown).round().int().tolist()] for name, shown in view.maps],
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
            for view in seen.views
        ],
    }


def write_page(path: Path, seen: Seen) -> None:
    """Write the page. Raises FileError."""
    write_text(path, fill_page("explain.html", page_data(seen)))


def write_report(path: Path, lists: Sequence[dict[str, Any]], model: str) -> None:
    """Write the page. lists: of `inference.assess`. model: its name. Raises FileError."""
    write_text(path, fill_page("evaluation.html", {"model": model, "lists": list(lists)}))


def fill_page(template: str, data: Any) -> str:
    """Return a page with its data inside, as JSON; numbers that are not finite, which it has none for, are null."""
    text = json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c")  # nothing in it can end the script element
    page, style, script = ((PAGES / name).read_text(encoding="utf-8") for name in (template, "common.css", "common.js"))
    return page.replace("/*STYLE*/", style).replace("/*SCRIPT*/", script).replace("/*DATA*/", text)


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def data_uri(image: Image.Image) -> str:
    """Return an address that holds a picture, as JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
