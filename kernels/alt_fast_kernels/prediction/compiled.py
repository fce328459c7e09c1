"""A launch compiled for a GPU that need not be here, and what its machine code says: the facts `predict` builds on."""

import ast
import hashlib
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from alt_fast_kernels.configs import Arch
from alt_fast_kernels.launch import FP_FUSION, Launch

KINDS = ("tensor", "memory", "special", "other")
"""Of instructions: matrix products; loads and stores, of shared memory too; exp2, reciprocals, roots, conversions."""


@dataclass(frozen=True)
class Target:
    """A GPU as far as occupancy goes. Per multiprocessor: registers, bytes of shared memory, warps, blocks."""

    gpu: GPUTarget
    shared_limit: int  # bytes one block may have
    shared: int
    warps: int = 64
    blocks: int = 32
    registers: int = 65536

    @property
    def is_amd(self) -> bool:
        return bool(self.gpu.backend == "hip")


TARGETS: dict[Arch, Target] = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 99 * 1024, 164 * 1024),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 * 1024, 228 * 1024),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 227 * 1024, 228 * 1024),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 * 1024, 64 * 1024, warps=32, registers=4 * 512 * 64),
}
"""The kernels' targets. sm_80's row also serves 8.6, 8.9 and 12.0: a block gets what they allow, the lower limit."""


class _Driver:
    """Stands in for a GPU driver, so that Triton compiles for a target that is not here."""

    def __init__(self, arch: Arch) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.arch].gpu

    def get_current_device(self) -> int:
        return 1000 + list(TARGETS).index(self.arch)  # Triton keeps what it compiled by this number

    def get_current_stream(self, device: int) -> int:
        return 0


@dataclass(frozen=True)
class Instruction:
    """address: in bytes (lines, for AMD). target: where it may jump, or None."""

    address: int
    name: str
    target: int | None

    @property
    def kind(self) -> str:
        """One of KINDS."""
        if re.match(r"[A-Z]*MMA|v_mfma|UTC.*MMA", self.name):
            return "tensor"
        if re.match(r"(LD|ST|ATOM|RED\.|UBLKCP|UTMA|LDGDEPBAR|global_|buffer_|flat_|ds_|s_load)", self.name):
            return "memory"
        if re.match(r"(MUFU|F2F|F2I|I2F\.|v_(exp|log|rcp|rsq|sqrt)_|v_cvt_)", self.name):
            return "special"
        return "other"

    @property
    def width(self) -> int | None:
        """Bytes per thread of a load from or store to global memory; None for all else."""
        if match := re.match(r"(LDG|STG|LDGSTS)\.(.*)", self.name):
            for suffix, width in ((".128", 16), (".64", 8), (".U16", 2), (".S16", 2), (".U8", 1), (".S8", 1)):
                if suffix in f".{match[2]}".replace("LTC128B", ""):
                    return width
            return 4
        if match := re.match(
            r"(?:global|buffer)_(?:load|store)_(?:dword)?(x4|x3|x2|u?short|u?byte|lds_.*)?", self.name
        ):
            return {"x4": 16, "x3": 12, "x2": 8}.get(
                match[1], 2 if "short" in self.name else 1 if "byte" in self.name else 4
            )
        return None


@dataclass(frozen=True)
class Loop:
    """A loop of the machine code, by the positions of its first and last instruction. inner: loops inside it."""

    first: int
    last: int
    inner: tuple["Loop", ...]


@dataclass(frozen=True)
class Code:
    """A compiled launch. registers: per thread. spills: bytes of stack, or spilled registers (AMD). shared: bytes."""

    arch: Arch
    registers: int
    spills: int
    shared: int
    warps: int
    instructions: tuple[Instruction, ...]
    assembly: str  # PTX, or AMD's

    @property
    def blocks_per_multiprocessor(self) -> int:
        """How many blocks (CTAs) are resident at a time, by registers, shared memory, warps and blocks."""
        target = TARGETS[self.arch]
        if target.is_amd:  # four SIMDs of 512 registers a lane, given out by eight
            per_simd = min(8, 512 // max(8, -(-self.registers // 8) * 8))
            by_registers = 4 * per_simd // self.warps
        else:  # registers are given to a warp by 256, warps to the four schedulers
            per_warp = -(-self.registers * 32 // 256) * 256
            by_registers = target.registers // 4 // per_warp * 4 // self.warps
        reserved = 0 if target.is_amd else 1024
        by_shared = target.shared // (self.shared + reserved) if self.shared + reserved else target.blocks
        return min(by_registers, by_shared, target.warps // self.warps, target.blocks)

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """The outermost loops, in program order."""
        position = {instruction.address: i for i, instruction in enumerate(self.instructions)}
        spans = sorted(
            {
                (position[instruction.target], i)
                for i, instruction in enumerate(self.instructions)
                if instruction.target in position and position[instruction.target] < i  # a jump to itself ends the code
            },
            key=lambda span: (span[0], -span[1]),
        )
        return tuple(_nest(spans))

    @cached_property
    def innermost(self) -> Loop | None:
        """The longest of the loops that hold no other; None for straight-line code."""

        def leaves(loops: tuple[Loop, ...]) -> Iterator[Loop]:
            for loop in loops:
                yield from leaves(loop.inner) if loop.inner else [loop]

        return max(leaves(self.loops), key=lambda loop: loop.last - loop.first, default=None)

    def mix(self, loop: Loop | None = None) -> Counter[str]:
        """Instructions by kind, of a loop or of the whole kernel."""
        part = self.instructions if loop is None else self.instructions[loop.first : loop.last + 1]
        return Counter(instruction.kind for instruction in part)

    def widths(self, what: str) -> Counter[int]:
        """Global loads ("load") or stores ("store") by bytes per thread."""
        names = {"load": r"LDG|(global|buffer)_load", "store": r"STG|(global|buffer)_store"}[what]
        return Counter(i.width for i in self.instructions if i.width is not None and re.match(names, i.name))


def _nest(spans: list[tuple[int, int]]) -> Iterator[Loop]:
    """Loops of spans sorted by start, the longest first; those of one start are one loop with several ends."""
    while spans:
        first, last = spans[0]
        inside = [span for span in spans[1:] if span[1] <= last and span[0] > first]
        yield Loop(first, last, tuple(_nest(inside)))
        spans = [span for span in spans[1:] if span[0] > last]


@contextmanager
def targeting(arch: Arch) -> Iterator[None]:
    """Let Triton compile for a target that need not be here."""
    before = driver._active  # None until somebody asks for a GPU
    driver.set_active(_Driver(arch))
    try:
        yield
    finally:
        driver.set_active(before)


def bind(launch: Launch) -> Any:
    """What Triton does on the host before it launches: bind the arguments, and look the kernel up, or compile it."""
    # As `kernel[grid](...)` does, but for the launch. `kernel.warmup` would cost a call more for every argument.
    grid = (max(1, launch.grid),)
    return launch.kernel.run(*launch.args, grid=grid, warmup=True, enable_fp_fusion=FP_FUSION, **launch.options)


def compile_for(arch: Arch, launch: Launch) -> Code:
    """Compile a launch, whose tensors may lie anywhere, and read its machine code."""
    with targeting(arch):
        binary = bind(launch)
    if TARGETS[arch].is_amd:
        text = binary.asm["amdgcn"]
        found = {field: int(value) for field, value in re.findall(r"\.(vgpr_count|vgpr_spill_count):\s*(\d+)", text)}
        registers, spills = found["vgpr_count"], found["vgpr_spill_count"]
        instructions = tuple(_amd_instructions(text))
    else:
        text = binary.asm["ptx"]
        dump = _cuobjdump(binary.asm["cubin"])
        usage = re.search(r"REG:(\d+) STACK:(\d+)", dump)
        if usage is None:
            raise RuntimeError(f"cuobjdump printed no register count: {dump[:500]!r}")
        registers, spills = int(usage[1]), int(usage[2])
        instructions = tuple(_sass_instructions(dump))
    return Code(arch, registers, spills, binary.metadata.shared, binary.metadata.num_warps, instructions, text)


def _key(launch: Launch) -> tuple[Any, ...]:
    """What compiled code depends on: kernel, constexpr parameters, dtypes, and what Triton specialises integers on."""
    fixed = set(getattr(launch.kernel, "do_not_specialize", None) or ())

    def kind(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return str(value.dtype)
        return value if value is None else name in fixed or (value == 1, value % 16 == 0)

    arguments = [kind(name, value) for name, value in zip(launch.kernel.arg_names, launch.args, strict=False)]
    return launch.name, *sorted(launch.options.items()), *arguments


def made_of(launch: Launch) -> str:
    """A fingerprint of what compiled code depends on: Triton, the kernel, and what the launch specialises it on."""
    parts = [triton.__version__, *code_of(launch.kernel), repr(_key(launch))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@cache
def code_of(kernel: JITFunction) -> tuple[str, ...]:
    """A kernel and all that it calls, less comments, docstrings and layout, and the constants that they read."""
    parts: dict[str, str] = {}

    def collect(function: JITFunction) -> None:
        tree = function.parse()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value = ast.Constant("")
        parts[f"{function.__module__}.{function.__name__}"] = ast.dump(tree)
        read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & function.__globals__.keys()
        for name in sorted(read):
            value = function.__globals__[name]
            if isinstance(value, tl.constexpr):
                parts[f"{function.__module__}.{name}"] = repr(value)
            elif isinstance(value, JITFunction) and f"{value.__module__}.{value.__name__}" not in parts:
                collect(value)

    collect(kernel)
    return tuple(parts.values())


class Compiler:
    """Compiled code by launch, for one target; what differs in numbers only is compiled once."""

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self._codes: dict[tuple[Any, ...], Code] = {}

    def __call__(self, launch: Launch) -> Code:
        key = _key(launch)
        if key not in self._codes:
            self._codes[key] = compile_for(self.arch, launch)
        return self._codes[key]


def _cuobjdump(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return "".join(
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )


def _sass_instructions(dump: str) -> Iterator[Instruction]:
    """Lines such as `/*0290*/  @P0 BRA 0x1230 ;`, less the padding behind the end."""
    line = re.compile(r"^\s+/\*([0-9a-f]{4,6})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?);", re.MULTILINE)
    for address, name, operands in line.findall(dump):
        if name == "NOP":
            continue
        jump = re.search(r"0x([0-9a-f]+)\s*$", operands) if name.startswith("BRA") else None
        yield Instruction(int(address, 16), name, int(jump[1], 16) if jump else None)


def _amd_instructions(text: str) -> Iterator[Instruction]:
    """Instructions between labels such as `.LBB0_3:`, whose address is the next instruction's."""
    names: list[tuple[str, str | None]] = []
    labels: dict[str, int] = {}
    for row in text.splitlines():
        if match := re.match(r"(\.LBB\w+):", row):
            labels[match[1]] = len(names)
        elif match := re.match(r"\s+([a-z]+_\w+)\s*(.*)", row):
            jump = re.search(r"\.LBB\w+", match[2]) if match[1].startswith(("s_cbranch", "s_branch")) else None
            names.append((match[1], jump[0] if jump else None))
    for i, (name, label) in enumerate(names):
        yield Instruction(i, name, labels.get(label) if label else None)
