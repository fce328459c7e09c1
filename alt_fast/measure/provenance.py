"""Where and with what a result was measured."""

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import alt_fast
import alt_fast_kernels
from alt_fast.checkout import find_checkout

PACKAGES = (
    *("triton", "timm", "open_clip_torch", "transformers", "torchvision", "fvcore", "xformers", "numpy"),
    *("av", "nvidia-dali-cuda120", "decord", "torchcodec"),
)


def provenance() -> dict[str, object]:
    """Device, clocks, versions and commit, for the head of a result file."""
    unknown = {"commit": "unknown", "uncommitted_changes": False, "alt_fast": alt_fast.__version__}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **({"commit": _CHECKOUT.commit, "uncommitted_changes": _CHECKOUT.changed} if _CHECKOUT else unknown),
        "python": platform.python_version(),
        # of torch the build too, which a package's version leaves out where it comes from PyPI
        "packages": {"torch": torch.__version__} | {name: found for name in PACKAGES if (found := _version(name))},
        **(_gpu() if torch.cuda.is_available() else _cpu()),
    }


def hash_code(modules: Iterable[str] = ()) -> str:
    """Return a hash of the code that measures: our packages, and those of these modules, which were imported before.

    Of a module in no package, all modules beside it.
    """
    files: list[Path] = []
    others = sorted({name.partition(".")[0] for name in modules})
    for module in (alt_fast, alt_fast_kernels, *(sys.modules[name] for name in others)):
        if hasattr(module, "__path__"):  # a package, in one folder or, without an __init__.py, in several
            files += [path for folder in module.__path__ for path in sorted(Path(folder).rglob("*.py"))]
        else:
            files += sorted(Path(module.__file__ or "").parent.glob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> dict[str, object]:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return {
        "device": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _gpu() -> dict[str, object]:
    query = "--query-gpu=driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
    state = _output("nvidia-smi", query, "--format=csv,noheader", "--id=0")
    return {
        "device": torch.cuda.get_device_name(),
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
        "cuda": torch.version.cuda,
        "driver, SM clock, memory clock, maximum SM clock, power limit": state,
    }


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


_CHECKOUT = find_checkout()
"""Found when this is imported, as the code that measures is: the checkout may move on before a result is written."""
