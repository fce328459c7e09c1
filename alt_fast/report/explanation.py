"""What a model saw in a video: shown in a notebook, or written as a page, a picture or a video."""

import html
from pathlib import Path

from alt_fast.errors import ArgumentError
from alt_fast.files import make_folder
from alt_fast.report.page import fill_page, page_data, write_page
from alt_fast.report.pictures import write_overlay, write_picture
from alt_fast.report.seen import Seen

WRITERS = {".html": write_page, ".png": write_picture, ".webm": write_overlay}
"""Who writes a file, by how its name ends."""


class Explanation(Seen):
    """What a model saw in a video; a notebook shows it as its page."""

    def save(self, path: str | Path) -> None:
        """Write a page (.html), a picture of the model's own r (.png), or a video of it (.webm).

        Raises ArgumentError for other names, FileError when it cannot be written.
        """
        path = Path(path)
        write = WRITERS[check_suffix(path)]
        make_folder(path.parent)
        write(path, self)

    def _repr_html_(self) -> str:
        page = fill_page("explain.html", page_data(self))
        return f'<iframe srcdoc="{html.escape(page)}" width="100%" height="1000" style="border: 0"></iframe>'


def check_suffix(path: Path) -> str:
    """Return the suffix of a name that `Explanation.save` takes. Raises ArgumentError for others."""
    if path.suffix not in WRITERS:
        raise ArgumentError(f"the file must end in {', '.join(WRITERS)}, got {path}")
    return path.suffix
