"""Where files that can be made again are kept between runs."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """`name` in alt-fast's folder under $XDG_CACHE_HOME, by default ~/.cache. It need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alt_fast" / name
