"""What makes a model fast: as many threads as there are cores for them, compiled code, and CUDA graphs."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from alt_fast.errors import RunError
from alt_fast.model.alt import ALT
from alt_fast.model.config import Head

DECODING = 0.05  # seconds that a core takes for a clip: of eight frames, of a video as Kinetics has them
MACS = 5e10  # that a core computes in a second, eagerly, in 32 bits
T = TypeVar("T")
_CHOSEN_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # what PyTorch reads; torchrun sets the first one to 1


def busy_decoders(model: ALT, workers: int) -> int:
    """Return how many of so many decoding processes work all the time, while the model computes with the other cores.

    Clips per second are cores / (decoding + computing), in seconds of a core for a clip: next to a large model
    processes that decode wait for it, and a small one waits for them. It depends on no measurement, since the last bits
    of what is computed depend on the threads.
    """
    tower = model.encoder.visual
    height, width = tower.grid_size
    weights = sum(parameter.numel() for parameter in tower.transformer.parameters())
    computing = weights * (1 + height * width) * model.config.frames / MACS
    return min(workers, round(torch.get_num_threads() * DECODING / (DECODING + computing)))


@contextmanager
def computing(model: ALT, workers: int) -> Iterator[None]:
    """Compute, inside, beside so many decoding processes, those of them that are busy (`computing_beside`)."""
    with computing_beside(busy_decoders(model, workers)):
        yield


@contextmanager
def computing_beside(busy: int) -> Iterator[None]:
    """Compute, inside, with as many threads as `busy` ones that decode leave cores, at least one.

    Threads that compute wait for each other after every operation: one without a core of its own holds up all of them.
    Where OMP_NUM_THREADS or MKL_NUM_THREADS is set, which torchrun does, it is as that says.
    """
    threads = torch.get_num_threads()
    if not any(name in os.environ for name in _CHOSEN_BY):
        torch.set_num_threads(max(1, threads - busy))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_compiler(device: torch.device, option: str) -> None:
    """Raise RunError where code for a CPU cannot be generated. option: that asked for it."""
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
        raise RunError(f"{option} on a CPU needs a C++ compiler, g++ or clang++, and none is on the PATH")


def compile_model(model: ALT) -> None:
    """Have the image tower and the decoder, nearly all the work, compiled when they are first called.

    That is for batches of one size; the first of another has them compiled for any, but within `compiled_for`. Inductor
    keeps what it generates on disk, and takes it from there the next time. Raises RunError without a compiler.
    """
    check_compiler(model.logit_scale.device, "--compile")
    for part in (model.encoder, model.decoder):
        part.compile()


def as_cuda_graph(step: Callable[..., T], *inputs: Tensor) -> Callable[..., T]:
    """Return a step as a CUDA graph: one launch in place of one for every kernel.

    inputs: as they will come, on the GPU; the step takes no others than of these shapes and dtypes. It returns tensors,
    copies of what the graph writes, which the next call overwrites.
    """
    with torch.cuda.device(inputs[0].device):
        graph = torch.cuda.make_graphed_callables(step, inputs)

    def replay(*given: Tensor) -> T:
        return tree_map(torch.clone, graph(*given))

    return replay


@contextmanager
def compiled_for(model: ALT, clips: int, head: Head) -> Iterator[None]:
    """Compile, at once, for batches of so many clips; inside, others are computed as without `compile_model`.

    The last batch has fewer, and takes less time than what would be compiled for it.
    """
    device = model.logit_scale.device  # blank clips are made as a loader's are: not in inference mode
    video = torch.zeros(clips, model.config.frames, 3, *model.image_size, device=device)
    classes = torch.zeros(1, model.alignment.entities.shape[1], device=device)
    with torch.inference_mode():
        model.probabilities(video, classes, head)
    with torch.compiler.set_stance("eager_on_recompile"):
        yield
