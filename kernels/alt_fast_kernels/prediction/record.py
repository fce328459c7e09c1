"""The recorded resources of every kernel in every configuration on every target, and what must hold of them.

A kernel's cost is in the machine code, so it is kept beside the source: `resources.jsonl`, one row per kernel, target
and configuration, with a fingerprint of the sources and the version of Triton that it was compiled from.
"""

import ast
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from alt_fast_kernels.configs import Arch
from alt_fast_kernels.launch import Launch
from alt_fast_kernels.prediction.cases import DTYPES, reachable
from alt_fast_kernels.prediction.compiled import KINDS, TARGETS, Code, compile_for

RECORD = Path(__file__).with_name("resources.jsonl")
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Row:
    """What one kernel takes. registers: per thread. spills: bytes of stack, or spilled registers (AMD). shared: bytes.

    blocks: resident on a multiprocessor. loop: instructions of its longest innermost loop by kind; all of them where
    there is no loop. loads, stores: of global memory, by bytes per thread.
    """

    target: Arch
    kernel: str
    configuration: str
    registers: int
    spills: int
    shared: int
    warps: int
    blocks: int
    instructions: int
    loop: dict[str, int]
    loads: dict[str, int]
    stores: dict[str, int]

    @property
    def key(self) -> tuple[Arch, str, str]:
        return self.target, self.kernel, self.configuration

    def faults(self) -> list[str]:
        """What no shipped kernel may do, in words."""
        found = []
        if self.spills:
            found.append(f"spills {self.spills}")
        if self.shared > TARGETS[self.target].shared_limit:
            found.append(f"needs {self.shared} bytes of shared memory")
        for what, widths in (("loads", self.loads), ("stores", self.stores)):
            narrow = sum(count for width, count in widths.items() if int(width) < 4)
            if narrow > 4:  # those of a LayerNorm's weight and bias may be
                found.append(f"{what} less than 4 bytes {narrow} times")
        return found

    def worse_than(self, recorded: "Row") -> list[str]:
        """What has become worse, in words: fewer blocks, a longer loop."""
        found = []
        if self.blocks < recorded.blocks:
            found.append(f"{self.blocks} blocks per multiprocessor, {recorded.blocks} before")
        now, before = sum(self.loop.values()), sum(recorded.loop.values())
        if now > before:
            found.append(f"{now} instructions in the loop, {before} before")
        return found


def row(arch: Arch, launch: Launch) -> Row:
    """Compile a launch for a target."""
    code = compile_for(arch, launch)
    return Row(
        target=arch,
        kernel=launch.name,
        configuration=configuration(launch),
        registers=code.registers,
        spills=code.spills,
        shared=code.shared,
        warps=code.warps,
        blocks=code.blocks_per_multiprocessor,
        instructions=len(code.instructions),
        loop=_loop(code),
        loads=_by_width(code, "load"),
        stores=_by_width(code, "store"),
    )


def _loop(code: Code) -> dict[str, int]:
    mix = code.mix(code.innermost)
    return {kind: mix[kind] for kind in KINDS if mix[kind]}


def _by_width(code: Code, what: str) -> dict[str, int]:
    return {str(width): count for width, count in sorted(code.widths(what).items())}


def configuration(launch: Launch) -> str:
    """Dtype and constexpr parameters of a launch, which tell it from the kernel's others."""
    names = {dtype: name for name, dtype in DTYPES.items()} | {torch.int64: "int64", torch.int32: "int32"}
    dtype = names[next(x for x in launch.args if isinstance(x, Tensor)).dtype]
    triton_options = ("num_warps", "num_stages", "maxnreg")
    parameters = {name: value for name, value in launch.options.items() if name not in triton_options}
    return " ".join([dtype, *(f"{name}={_short(value)}" for name, value in sorted(parameters.items()))])


def _short(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def launches(arch: Arch) -> dict[tuple[Arch, str, str], Launch]:
    """Every reachable launch on a target once, by its row's key."""
    return {
        (arch, launch.name, configuration(launch)): launch for case in reachable() for launch in case.launches(arch)
    }


def fingerprint() -> dict[str, str]:
    """What the record depends on: Triton's version, and the code, less words, of all that decides what is compiled."""
    text = hashlib.sha256()
    sources = [PACKAGE / "configs.py", PACKAGE / "launch.py", PACKAGE / "prediction" / "cases.py"]
    for part in ("match", "merge", "attention", "align"):
        sources += sorted((PACKAGE / part).glob("*.py"))
    for source in sources:
        text.update(code_of(source).encode())
    return {"triton": triton.__version__, "sources": text.hexdigest()}


def code_of(source: Path) -> str:
    """A module without comments, docstrings and layout."""
    tree = ast.parse(source.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value = ast.Constant("")
    return ast.dump(tree)


def compile_rows(keys: Iterable[tuple[Arch, str, str]] | None = None, workers: int | None = None) -> list[Row]:
    """Compile the rows of these keys (all by default), in processes of their own."""
    wanted = None if keys is None else frozenset(keys)
    targets = TARGETS if wanted is None else sorted({target for target, _, _ in wanted})
    workers = workers or os.cpu_count() or 1
    with ProcessPoolExecutor(workers) as pool:
        parts = [pool.submit(_part, arch, wanted, part, workers) for arch in targets for part in range(workers)]
        return sorted((found for part in parts for found in part.result()), key=lambda found: found.key)


def _part(arch: Arch, wanted: frozenset[tuple[Arch, str, str]] | None, part: int, parts: int) -> list[Row]:
    items = [launch for key, launch in launches(arch).items() if wanted is None or key in wanted]
    return [row(arch, launch) for launch in items[part::parts]]


def read() -> tuple[dict[str, str], dict[tuple[Arch, str, str], Row]]:
    """The recorded fingerprint, and rows by key."""
    first, *rest = RECORD.read_text().splitlines()
    rows = [Row(**json.loads(line)) for line in rest]
    return json.loads(first), {found.key: found for found in rows}


def write(rows: Iterable[Row]) -> None:
    """Record rows, with the fingerprint of today's sources."""
    lines = [json.dumps(fingerprint()), *(json.dumps(asdict(found)) for found in rows)]
    RECORD.write_text("".join(f"{line}\n" for line in lines))


def regressions(rows: Iterable[Row], recorded: dict[tuple[Arch, str, str], Row]) -> Iterator[str]:
    """Every fault, and whatever is worse than recorded, in words."""
    for found in rows:
        known = recorded.get(found.key)
        for fault in found.faults() + (found.worse_than(known) if known else []):
            yield f"{' '.join(found.key)}: {fault}"
