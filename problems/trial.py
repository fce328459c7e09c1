"""Problems as their folders state them, and what a submission goes through: tests, then races checked call by call."""

import importlib
import importlib.util
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from alt_fast.errors import FileError
from alt_fast.files import read_yaml
from alt_fast.measure.timing import Race

OPS = ("match", "merge", "attention", "align")
ENTRY = "custom_kernel"
"""The function of a submission."""

REFERENCE, OURS = "reference", "alt_fast"
"""Who runs in every race, beside a submission."""

Inputs = tuple[Any, ...]
Kernel = Callable[[Inputs], Any]
Shape = Mapping[str, int | str]
"""Arguments of a problem's generate_input."""


@dataclass(frozen=True)
class Problem:
    """A folder: task.yml and reference.py. benchmarks: shapes by type of device."""

    op: str
    tests: Sequence[Shape]
    benchmarks: Mapping[str, Sequence[Shape]]
    reference: Kernel
    check: Callable[[Inputs, Any], str | None]
    generate: Callable[..., Inputs]


class SubmissionError(Exception):
    """What a submission did wrong."""


def load_problem(op: str) -> Problem:
    """Read a problem, one of OPS."""
    task = read_yaml(Path(__file__).parent / op / "task.yml", "name", "description", "tests", "benchmarks")
    module = importlib.import_module(f"problems.{op}.reference")
    return Problem(
        op, task["tests"], task["benchmarks"], module.ref_kernel, module.check_implementation, module.generate_input
    )


def load_submission(path: Path, name: str = "submission") -> Kernel:
    """Run a file as the module `name` and return its custom_kernel.

    Raises FileError for one that cannot be read or run, or has none.
    """
    if not path.is_file():
        raise FileError(f"cannot read {path}: no such file")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileError(f"cannot read {path}: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and torch.compile look for it
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise FileError(f"cannot run {path}: {_described(e)}") from e
    kernel = getattr(module, ENTRY, None)
    if not callable(kernel):
        raise FileError(f"{path} has no function {ENTRY}(inputs)")
    return kernel


def describe(shape: Shape) -> str:
    """Name a shape."""
    return ", ".join(f"{name}={value}" for name, value in shape.items())


def _described(error: Exception) -> str:
    """Return an error's type and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


@contextmanager
def _blamed(where: str) -> Iterator[None]:
    """Make a SubmissionError of any error inside."""
    try:
        yield
    except Exception as e:
        raise SubmissionError(where + _described(e)) from e


def test(problem: Problem, kernel: Kernel, shape: Shape, seed: int, device: torch.device) -> None:
    """Call a submission on new inputs, then on others in the same tensors. Raises SubmissionError.

    What it remembers by address is wrong the second time, and what it wrote the first time must be left alone.
    """
    seeds = random.Random(f"{seed}: {describe(shape)}")
    inputs = problem.generate(**shape, seed=0, device=device)
    former: list[Tensor] = []
    for when in ("", "on new inputs in the same tensors: "):
        fresh = problem.generate(**shape, seed=seeds.getrandbits(48), device=device)
        _fill(inputs, fresh)
        with _blamed(when):
            output = kernel(inputs)
        if _shared(output, former):
            raise SubmissionError(f"{when}the output shares memory with the former call's")
        if fault := _find_fault(problem, inputs, fresh, output):
            raise SubmissionError(when + fault)
        former += _tensors(output)


def race(
    problem: Problem, kernels: Mapping[str, Kernel], shape: Shape, seed: int, device: torch.device, rounds: int
) -> Race:
    """Time kernels in turn, on new inputs in every round, and check what every timed call left.

    Raises SubmissionError, which names the kernel. Who cannot be captured or run is among the race's skipped.
    """
    seeds = random.Random(f"{seed}: {describe(shape)}, timed")
    inputs = problem.generate(**shape, seed=0, device=device)
    steps = {name: _Step(kernel, inputs) for name, kernel in kernels.items()}
    result = Race()
    for name, step in steps.items():
        result.add(name, step, device.type)
    order = list(result.contestants)
    for _ in range(rounds):
        fresh = problem.generate(**shape, seed=seeds.getrandbits(48), device=device)
        _fill(inputs, fresh)
        order.append(order.pop(0))  # another one begins
        for name in order:
            with _blamed(f"{name}, in a timed call: "):
                result.run(name)
            if fault := _find_fault(problem, inputs, fresh, steps[name].output):
                raise SubmissionError(f"{name}, in a timed call: {fault}")
    return result


class _Step:
    """A call that keeps its output: a graph's replay writes it anew."""

    def __init__(self, kernel: Kernel, inputs: Inputs) -> None:
        self.kernel, self.inputs = kernel, inputs
        self.output: Any = None

    def __call__(self) -> object:
        self.output = self.kernel(self.inputs)
        return self.output


def _find_fault(problem: Problem, inputs: Inputs, fresh: Inputs, output: Any) -> str | None:
    """Say what is wrong with a call on `inputs`, which were a copy of `fresh`, or with its output."""
    for number, (x, before) in enumerate(zip(inputs, fresh, strict=True)):
        if isinstance(x, Tensor) and not torch.equal(x, before):
            return f"it changes inputs[{number}]"
    if _shared(output, inputs):
        return "the output shares memory with the inputs"
    return problem.check(fresh, output)


def _fill(inputs: Inputs, fresh: Inputs) -> None:
    """Write `fresh` into the tensors of `inputs`."""
    for x, new in zip(inputs, fresh, strict=True):
        if isinstance(x, Tensor):
            x.copy_(new)


def _tensors(value: object) -> list[Tensor]:
    """The plain tensors in a value; any other is none that a problem takes."""
    return [x for x in tree_leaves(value) if type(x) is Tensor]


def _shared(a: object, b: object) -> bool:
    """Whether a tensor of one lies in memory of the other."""
    one, other = ({x.untyped_storage().data_ptr() for x in _tensors(value)} for value in (a, b))
    return bool(one & other)
