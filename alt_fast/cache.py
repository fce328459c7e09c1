"""Files that can be made again, kept between runs."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_folder(name: str) -> Path:
    """`name` in alt-fast's folder under $XDG_CACHE_HOME, by default ~/.cache. It need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alt_fast" / name


def write_to_cache(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary name, then rename: readers and other writers of the same file see it whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".partial", delete=False) as partial:
        pass
    write(Path(partial.name))
    os.replace(partial.name, path)
