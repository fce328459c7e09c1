"""Every kernel test runs twice: on the reference, and on the Triton kernels.

Without a GPU the kernels run under Triton's interpreter, with a GPU's arithmetic; `make test-gpu` compiles them.
Inputs are fresh on every run; a failure prints its seed, and `--seed` repeats it. Memory from torch.empty is poisoned
with NaN.
"""

import random
import re
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from alt_fast_kernels import use_backend
from alt_fast_kernels.interpreter import device_arithmetic

_CONSTRAINTS = (Path(__file__).parents[2] / "constraints.txt").read_text()
RECORDED = re.findall(r"^triton==(\S+)", _CONSTRAINTS, re.MULTILINE)
"""The Triton whose code is recorded."""

of_recorded_code = pytest.mark.skipif([version("triton")] != RECORDED, reason=f"recorded with Triton {RECORDED}")


@pytest.fixture(scope="session", autouse=True)
def one_thread_per_product() -> Iterator[None]:
    """The interpreter multiplies small tiles by the thousand, which threads only slow down."""
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def inputs(request: pytest.FixtureRequest, device: torch.device) -> Iterator[None]:
    """Fresh random tensors, made on the device under test; uninitialised memory is NaN."""
    seed = request.config.getoption("--seed") or random.randrange(2**31)
    print(f"repeat with --seed {seed}")
    torch.manual_seed(seed)
    torch.set_default_device(device)
    torch.use_deterministic_algorithms(True, warn_only=True)  # also fills torch.empty
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_default_device(None)


@pytest.fixture(autouse=True, params=["reference", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The implementation under test; tests marked `reference_only` run once."""
    if request.param == "triton" and request.node.get_closest_marker("reference_only"):
        pytest.skip("runs no kernel")
    if request.param == "reference" and request.node.get_closest_marker("kernel_only"):
        pytest.skip("holds kernels to the reference")
    arithmetic = nullcontext() if request.node.get_closest_marker("same_arithmetic") else device_arithmetic()
    with use_backend(request.param), arithmetic:
        yield request.param


@pytest.fixture
def interpreted(backend: str, device: torch.device) -> bool:
    """Whether the kernels run in the interpreter, whose time is measured in tiles: a few of each kind must do."""
    return backend == "triton" and device.type == "cpu"
