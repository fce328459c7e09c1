"""The checkout that this code runs from, where it does."""

import subprocess
from pathlib import Path
from typing import NamedTuple


class Checkout(NamedTuple):
    """commit: its hash. changed: whether tracked files differ from it."""

    commit: str
    changed: bool


def find_checkout() -> Checkout | None:
    """Return the checkout that this file belongs to; None for an installed copy, which may lie in somebody else's."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return Checkout(git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "-uno")))
    except (OSError, subprocess.CalledProcessError):
        return None
