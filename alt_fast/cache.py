"""Files that can be made again, kept between runs."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from hashlib import _Hash


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


def hash_weights(module: nn.Module) -> "_Hash":
    """SHA-256 of a module's weights and buffers: names, shapes, dtypes, kind of device, values. More may be added."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {tensor.device.type}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest
