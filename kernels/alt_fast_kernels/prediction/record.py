"""The recorded resources of every kernel in every configuration on every target, and what must hold of them.

A kernel's cost is in the machine code, so it is kept beside the source: `resources.jsonl`, one row per kernel, target
and configuration, each with a fingerprint of what it was compiled from: see `compiled.made_of`.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alt_fast_kernels.configs import TABLE, Arch
from alt_fast_kernels.launch import Launch
from alt_fast_kernels.prediction.cases import DTYPES, reachable
from alt_fast_kernels.prediction.compiled import KINDS, TARGETS, Code, compile_for, made_of

RECORD = Path(__file__).with_name("resources.jsonl")


@dataclass(frozen=True)
class Row:
    """What one kernel takes. registers: per thread. spills: bytes of stack, or spilled registers (AMD). shared: bytes.

    blocks: resident on a multiprocessor. loop: instructions of its longest innermost loop by kind; all of them where
    there is no loop. loads, stores: of global memory, by bytes per thread. made_of: a fingerprint, see `made_of`.
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
    made_of: str

    @property
    def key(self) -> tuple[Arch, str, str]:
        return self.target, self.kernel, self.configuration

    @property
    def shape(self) -> tuple[Arch, str, str]:
        """The key less the tiles that `configs.TABLE` chooses: a kernel tuned anew has another key and this one."""
        dtype, *parameters = self.configuration.split()
        chosen = _tiles(self.kernel)
        return self.target, self.kernel, " ".join([dtype, *(x for x in parameters if x.split("=")[0] not in chosen)])

    @property
    def tile(self) -> int:
        """The elements of a tile, but for factors that all tiles of its shape have."""
        parameters = dict(x.split("=") for x in self.configuration.split()[1:])
        return math.prod(int(parameters.get(name, 1)) for name in _tiles(self.kernel) - {"PRECISION", "NARROW"})

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

    def worse_than_other_tiles(self, recorded: "Row") -> list[str]:
        """What has become worse with other tiles, in words: fewer warps, more instructions for as many elements."""
        found = []
        if self.blocks * self.warps < recorded.blocks * recorded.warps:
            found.append(
                f"{self.blocks * self.warps} warps per multiprocessor, {recorded.blocks * recorded.warps} before"
            )
        now, before = (1000 * row.warps * sum(row.loop.values()) / row.tile for row in (self, recorded))
        if now > before:
            found.append(f"{now:.1f} instructions of a warp for 1,000 elements of a tile, {before:.1f} before")
        return [f"{what} ({recorded.configuration})" for what in found]


@cache
def _tiles(kernel: str) -> frozenset[str]:
    """The names of a kernel's parameters that the table chooses."""
    chosen = {"RUN", "STEPS", "BLOCK", "SEARCHED", "COUNTED"} if kernel in ("match_select", "match_place") else set()
    for kernels, _, _, by_width in TABLE:
        if any(name.startswith(kernel) for name in kernels.split()):
            chosen |= {name for config in by_width.values() for name in config}
    return frozenset(chosen)


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
        made_of=made_of(launch),
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


def stale(recorded: dict[tuple[Arch, str, str], Row]) -> list[tuple[Arch, str, str]]:
    """Keys of what is launched today and not recorded, or of other code, and of rows that nothing launches."""
    today = {key: made_of(launch) for arch in TARGETS for key, launch in launches(arch).items()}
    made = {key: row.made_of for key, row in recorded.items()}
    return sorted(key for key in today.keys() | made.keys() if today.get(key) != made.get(key))


def compile_rows(keys: Iterable[tuple[Arch, str, str]] | None = None, workers: int | None = None) -> list[Row]:
    """Compile the rows of these keys (all by default), in processes of their own."""
    wanted = None if keys is None else frozenset(keys)
    targets = TARGETS if wanted is None else sorted({target for target, _, _ in wanted})
    workers = workers or os.cpu_count() or 1
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:  # a fork would lack PyTorch's threads
        parts = [pool.submit(_part, arch, wanted, part, workers) for arch in targets for part in range(workers)]
        return sorted((found for part in parts for found in part.result()), key=lambda found: found.key)


def _part(arch: Arch, wanted: frozenset[tuple[Arch, str, str]] | None, part: int, parts: int) -> list[Row]:
    items = [launch for key, launch in launches(arch).items() if wanted is None or key in wanted]
    return [row(arch, launch) for launch in items[part::parts]]


def read() -> dict[tuple[Arch, str, str], Row]:
    """The recorded rows by key."""
    if not RECORD.exists():
        return {}
    rows = [Row(**json.loads(line)) for line in RECORD.read_text().splitlines()]
    return {found.key: found for found in rows}


def write(rows: Iterable[Row]) -> None:
    """Record rows."""
    RECORD.write_text("".join(f"{json.dumps(asdict(found))}\n" for found in sorted(rows, key=lambda row: row.key)))


def regressions(rows: Iterable[Row], recorded: dict[tuple[Arch, str, str], Row]) -> Iterator[str]:
    """Every fault, and whatever is worse than recorded, in words.

    A row that is not recorded is held to the recorded one of its shape whose tile is the nearest.
    """
    for found in rows:
        worse = []
        if found.key in recorded:
            worse = found.worse_than(recorded[found.key])
        elif alike := [known for known in recorded.values() if known.shape == found.shape]:
            worse = found.worse_than_other_tiles(min(alike, key=lambda known: abs(math.log(known.tile / found.tile))))
        for fault in found.faults() + worse:
            yield f"{' '.join(found.key)}: {fault}"
