"""What can be wrong with a way of removing tokens, found by running it; each fault has a name and what was seen."""

import copy
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from alt_fast.measure.ceiling import dropping
from alt_fast.measure.counting import inference_macs
from alt_fast.measure.observe import Counts, count_tokens
from alt_fast.measure.outputs import as_tensor
from alt_fast_kernels import check_values

Patch = Callable[[nn.Module, Any], object]
"""Patches a model in place: patch(model, r). Returns the model, another one to use in its place, whose modules have the
same names, or None."""

FAULTS = {
    "output shape": "it returns another shape or dtype than the model",
    "not finite": "it returns NaN or infinity where the model does not",
    "state": "what it returns depends on what it was called with before",
    "r ignored": "with another r it leaves the same tokens and returns the same",
    "other tokens": "it leaves other tokens than it claims",
    "host synchronisation": "it waits for the device to read values: no CUDA graph, and a stall in every call",
    "changed weights": "it changes parameters of the model",
    "hidden work": "it counts fewer FLOPs than its tokens take: something runs that no counter sees, or is left out",
    "too fast": "it is faster than the same model with as many tokens that does nothing else",
}


@dataclass(frozen=True)
class Fault:
    """name: a key of FAULTS. seen: what shows it."""

    name: str
    seen: str

    def __str__(self) -> str:
        return f"{self.name}: {FAULTS[self.name]} ({self.seen})"


def patched(model: nn.Module, patch: Patch, r: Any) -> nn.Module:
    """Return a patched copy of a model."""
    taken = copy.deepcopy(model)
    returned = patch(taken, r)
    return returned if isinstance(returned, nn.Module) else taken


def call(
    model: nn.Module, images: Tensor, mode: Callable[[], AbstractContextManager[Any]] = torch.inference_mode
) -> Tensor:
    """Run a model on images, with the same random numbers every time. mode: in which it runs, without gradients."""
    with torch.random.fork_rng([images.device] if images.is_cuda else []), mode():
        torch.manual_seed(0)
        return as_tensor(model(images))


def find_faults(
    model: nn.Module, patch: Patch, r: Any, images: Tensor, blocks: list[str], claimed: Sequence[int] | None = None
) -> list[Fault]:
    """Look for every fault of FAULTS. images: at least two, all different. claimed: tokens at every MLP, or None.

    "too fast" is for races to tell. Raises whatever the method raises.
    """
    first = patched(model, patch, r)
    found: list[Fault] = []
    plain, expected = look(model, images, blocks)
    own, _ = _waits_of(model, images)
    waits, out = _waits_of(first, images)
    if out.shape != expected.shape or out.dtype != expected.dtype:
        seen = f"{tuple(out.shape)} {out.dtype}, not {tuple(expected.shape)} {expected.dtype}"
        found.append(Fault("output shape", seen))
    elif expected.isfinite().all() and not out.isfinite().all():
        found.append(Fault("not finite", f"{int((~out.isfinite()).sum())} of {out.numel()} numbers"))
    if more := [wait for wait in waits if wait not in own]:
        found.append(Fault("host synchronisation", ", ".join(more)))
    found += _state(model, patch, r, images, out)
    counts, _ = look(first, images, blocks)
    if claimed is not None and tuple(claimed) != counts.mlp:
        found.append(Fault("other tokens", f"{_text(counts.mlp)} at the MLPs, claimed {_text(claimed)}"))
    changes = counts != plain or not is_close(out, expected)
    if changes and (alike := _alike(model, patch, r, images, blocks, counts, out)):
        found.append(Fault("r ignored", f"r = {r} and {alike[0]}"))
    changed = _changed(model, first)
    if changed:
        found.append(Fault("changed weights", ", ".join(changed[:3])))
    return found + _hidden_work(model, first, images, counts)


def _waits_of(model: nn.Module, images: Tensor) -> tuple[list[str], Tensor]:
    """Where a call waits for values, and what it returns."""
    with _Waits() as waits, check_values(False):  # our ops look at values on a CPU, and nowhere else
        out = call(model, images, torch.no_grad)  # inference mode would show composite ops whole
    return waits.seen, out


def _state(model: nn.Module, patch: Patch, r: Any, images: Tensor, fresh: Tensor) -> list[Fault]:
    """Whether a second call, or one behind other images, returns what a first call does.

    Where two first calls differ, as with random numbers of its own, nothing can be said: it is not deterministic.
    """
    if not is_close(call(patched(model, patch, r), images), fresh):
        return []
    others = {"the same images": images, "other images": images.flip(0), "fewer images": images[:1]}
    for what, given in others.items():
        kept = patched(model, patch, r)
        try:
            call(kept, given)
        except Exception:  # a batch that it does not take shows nothing
            continue
        if not is_close(call(kept, images), fresh):
            return [Fault("state", f"after {what}")]
    return []


def _hidden_work(model: nn.Module, method: nn.Module, images: Tensor, counts: Counts) -> list[Fault]:
    """Whether fewer MACs are counted than of the model with as many tokens, which are dropped."""
    try:
        found, least = (inference_macs(who, images) for who in (method, dropping(model, counts, images)))
    except Exception:  # ops that nobody counts show nothing, nor do towers that cannot run with fewer tokens
        return []
    return [Fault("hidden work", f"{found:,} MACs counted, {least:,} by tokens")] if found < least else []


def is_close(a: Tensor, b: Tensor) -> bool:
    """Whether numbers differ by no more than some roundings."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    largest = b.float().abs().nan_to_num(0, 0, 0).max().item()
    relative = max(1e-3, 2 * torch.finfo(b.dtype).eps)
    return torch.allclose(a, b, rtol=relative, atol=relative * largest / 10, equal_nan=True)


def look(model: nn.Module, images: Tensor, blocks: list[str]) -> tuple[Counts, Tensor]:
    """Return the tokens of a call, and what it returns."""
    returned: list[Tensor] = []
    counts = count_tokens(model, blocks, images, lambda: returned.append(call(model, images)))
    return counts, returned[0]


def _alike(
    model: nn.Module, patch: Patch, r: Any, images: Tensor, blocks: list[str], counts: Counts, out: Tensor
) -> list[Any]:
    """Other r that the method takes, if all of them leave the same tokens and return the same; none if one does not.

    Half of r alone would not do: a method may remove all that it can at both.
    """
    alike = []
    for other in _others(r):
        try:
            seen, returned = look(patched(model, patch, other), images, blocks)
        except Exception:  # an r that it does not take shows nothing
            continue
        if seen != counts or not is_close(returned, out):
            return []
        alike.append(other)
    return alike


def _others(r: Any) -> list[Any]:
    """Others of the kind of r: half of it, 0 and 1, of a sequence of every number in it."""
    if isinstance(r, Sequence):
        others = [type(r)(values) for values in zip(*map(_trials, r), strict=True)]  # type: ignore[call-arg]
        return [other for other in others if other != r]
    return [other for other in _trials(r) if other != r]


def _trials(r: Any) -> tuple[Any, Any, Any]:
    return r / 2 if isinstance(r, float) else r // 2, type(r)(0), type(r)(1)


def _changed(before: nn.Module, after: nn.Module) -> list[str]:
    kept = after.state_dict()
    return [name for name, value in before.state_dict().items() if name in kept and not torch.equal(kept[name], value)]


def _text(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))


WAITING = {
    "_local_scalar_dense": "item",
    "_unique2": "unique",
    **{name: name for name in ("nonzero", "masked_select", "unique_dim", "unique_consecutive")},
    **{name: name for name in ("equal", "allclose", "bincount")},
}
"""Ops whose result, or its size, has to be known to the host before it goes on, and how users call them."""

SYNCHRONISE = (torch.cuda, torch.accelerator, torch.cuda.Stream, torch.cuda.Event)
"""What has a `synchronize`."""


class _Waits:
    """Where what runs inside waits for values: `seen`, each as the op and the line that asks for it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __enter__(self) -> "_Waits":
        with ExitStack() as stack:
            for mode in (_WaitingOps(self.seen), _WaitingMethods(self.seen)):
                stack.enter_context(mode)
            for owner in SYNCHRONISE:
                replacing = mock.patch.object(owner, "synchronize", self._noting(owner.synchronize))
                stack.enter_context(replacing)
            self.inside = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self.inside.__exit__(*error)

    def _noting(self, synchronize: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(synchronize)
        def noted(*args: Any, **kwargs: Any) -> Any:
            _note(self.seen, "synchronize")
            return synchronize(*args, **kwargs)

        return noted


class _WaitingOps(TorchDispatchMode):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._overloadpacket._qualified_op_name.removeprefix("aten::")
        masks = name in ("index", "index_put", "index_put_") and _reads_mask(*args[1:3])
        counted = name == "repeat_interleave" and kwargs.get("output_size") is None
        fetched = name == "_to_copy" and args[0].device.type != "cpu" and kwargs.get("device") == torch.device("cpu")
        if name in WAITING or masks or counted or fetched:
            _note(self.seen, "to" if fetched else WAITING.get(name, name))
        return func(*args, **kwargs)


def _reads_mask(indices: Sequence[Tensor | None], values: Tensor | None = None) -> bool:
    """Whether indexing asks how many elements of a mask are true; filling by one mask and one number does not."""
    filled = values is not None and len(indices) == 1 and values.numel() == 1
    return not filled and any(x is not None and x.dtype == torch.bool for x in indices)


class _WaitingMethods(TorchFunctionMode):
    """Methods of tensors that no op stands for, where all is on a CPU."""

    METHODS = (Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__)

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to_cpu = func is Tensor.to and any(isinstance(x, str) and x == "cpu" for x in (*args, *kwargs.values()))
        if func in self.METHODS or to_cpu:
            _note(self.seen, func.__name__)
        return func(*args, **kwargs)


def _note(seen: list[str], what: str) -> None:
    """Keep the op, with the nearest line that is neither PyTorch's nor of this file."""
    inside = (str(Path(torch.__file__).parent), __file__)
    frames = traceback.extract_stack(sys._getframe())
    at = next((frame for frame in reversed(frames) if not frame.filename.startswith(inside)), None)
    line = what if at is None else f"{what} at {Path(at.filename).name}:{at.lineno}"
    if line not in seen:
        seen.append(line)
