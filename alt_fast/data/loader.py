"""Batches of clips on the device, from processes that decode: in order, whatever a file or a process does.

backend, why = open_backend("auto", clips, device)
for batch in Loader(clips, keys, backend, Loading(workers=8)):
    model(batch.video)
"""

import importlib.util
from collections import deque
from collections.abc import Generator, Iterator
from typing import get_args

import torch

from alt_fast.data.batch import Backend, Batch, PendingClip
from alt_fast.data.config import LoaderName, Loading
from alt_fast.data.dataset import Clips, KeyBatches
from alt_fast.data.pyav import TorchBackend
from alt_fast.data.workers import Workers
from alt_fast.errors import ArgumentError

_INSTALL = "pip install 'alt-fast[dali]'"


def open_backend(
    name: LoaderName, clips: Clips, device: torch.device, dtype: torch.dtype = torch.float32, threads: int = 1
) -> tuple[Backend, str]:
    """Return the backend that gives `dtype` on `device`, and why it is this one. threads: DALI's.

    "auto" tries DALI out before it takes it. Raises ArgumentError for an unknown name, and when DALI is asked for and
    not installed.
    """
    if name not in get_args(LoaderName):
        raise ArgumentError(f"loader must be one of {', '.join(get_args(LoaderName))}, got {name!r}")
    installed = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
    if name == "torch":
        return TorchBackend(clips, device, dtype), "torch, as asked for"
    if name == "auto" and device.type != "cuda":
        return TorchBackend(clips, device, dtype), "torch, since DALI decodes most codecs on a GPU only"
    if name == "auto" and not installed:
        return TorchBackend(clips, device, dtype), f"torch, since DALI is not installed ({_INSTALL})"
    if not installed:
        raise ArgumentError(f"loader 'dali' was asked for, but DALI is not installed: {_INSTALL}")
    try:
        from alt_fast.data.dali import DaliBackend  # heavy, and optional

        backend = DaliBackend(clips, device, dtype, threads)
        if name == "auto":
            backend.try_out()
    except (ImportError, OSError, RuntimeError) as e:
        if name == "dali":
            raise
        return TorchBackend(clips, device, dtype), f"torch, since DALI does not run here ({e})"
    return backend, "dali, as asked for" if name == "dali" else "dali, on the GPU"


class Loader:
    """Batches of the clips with the given keys, a batch for each list of them.

    Order and content do not depend on the number of processes.
    """

    def __init__(self, clips: Clips, keys: KeyBatches, backend: Backend, loading: Loading) -> None:
        self._clips, self._keys, self._backend, self._loading = clips, keys, backend, loading

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Generator[Batch, None, None]:
        loading, lost = self._loading, dict[int, str]()
        with Workers(self._backend.reader(), loading.workers, loading.timeout) as pool:

            def pending() -> Iterator[list[PendingClip]]:
                started: deque[list[PendingClip]] = deque()
                for keys in self._keys:
                    started.append([PendingClip(key, self._clips, pool, lost) for key in keys])
                    if len(started) > 2 and sum(map(len, started)) > 4 * loading.workers:
                        yield started.popleft()
                yield from started

            yield from self._backend.batches(pending())
