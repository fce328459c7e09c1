"""PTX taken apart: a kernel as lines whose effects, and what decides them, can be cut out and spelt otherwise.

Names in capitals are what `verify` says to be given where a program is spelt so.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise, zip_longest

BF16 = 1 << 7 | 1 << 10
"""The bits of tcgen05's descriptor of a product that say bf16, where 0 says fp16 (PTX, "Instruction descriptor")."""

LIFE, LIVES = 1 << 18, 128
"""Bytes from one life of a barrier to its next, and how many lives one may have."""

_EFFECT = re.compile(
    r"(ld|st|ldmatrix|stmatrix|atom|red|cp|bar|barrier|mbarrier|fence|membar|tcgen05|wgmma|elect|ret|exit|trap|setmaxnreg"
    r"|griddepcontrol)(?![\w])"
)
_LABEL = re.compile(r"\s*([$\w]+):")
_INSTRUCTION = re.compile(r"\s*(?:@!?([%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*?);\s*$")
NAME = re.compile(r"[%A-Za-z_$][\w$.]*")


@dataclass(frozen=True)
class Instruction:
    """A line of PTX taken apart. reads, writes: names of registers, and of symbols."""

    guard: frozenset[str]
    name: str
    writes: frozenset[str]
    reads: frozenset[str]
    address: frozenset[str]
    operands: str

    @classmethod
    def of(cls, line: str) -> "Instruction | None":
        match = None if line.lstrip().startswith((".", "$", "}", ")")) else _INSTRUCTION.match(line.strip("{ \t"))
        if match is None:
            return None
        guard, name, operands = match.groups()
        first, rest = first_operand(operands)
        address = frozenset(NAME.findall(" ".join(re.findall(r"\[(.*?)\]", operands))))
        if re.match(r"(st|stmatrix|red|bra|bar|ret|cp|fence)\b", name) or first.startswith("["):
            first, rest = "", operands
        guards = frozenset({guard} if guard else ())
        return cls(guards, name, frozenset(NAME.findall(first)), frozenset(NAME.findall(rest)), address, operands)

    @property
    def needs(self) -> frozenset[str]:
        """What decides where and whether this takes effect, less the values it moves."""
        moves = re.match(r"(ld|st|ldmatrix|stmatrix|red|tcgen05\.ld|tcgen05\.st)\.", self.name) is not None
        return self.guard | (self.address if moves else self.reads)


def first_operand(operands: str) -> tuple[str, str]:
    """The first operand, a register or a vector of them, and the rest."""
    end = operands.find("}") + 1 if operands.startswith("{") else operands.find(",")
    return (operands[:end], operands[end:]) if end > 0 else (operands, "")


class Program:
    """PTX without comments, with the line of Triton that each of its lines comes from."""

    def __init__(self, lines: list[str], sources: list[str]) -> None:
        self.lines, self.sources = lines, sources
        self.code = {i: found for i, line in enumerate(lines) if (found := Instruction.of(line))}
        self._labels: dict[str, list[int]] = {}
        for i, line in enumerate(lines):
            if match := _LABEL.match(line):
                self._labels.setdefault(match[1], []).append(i)

    @classmethod
    def of(cls, ptx: str) -> "Program":
        lines, sources, source = [], [], ""
        for line in ptx.split("\t.section")[0].splitlines():
            if match := re.match(r"\s*\.loc\s.*// (?:.*@\[ )?([\w./]+:\d+)", line):
                source = match[1]
            line = line.split("//")[0].rstrip()
            if line.strip() and not line.lstrip().startswith((".loc", ".file")):
                lines.append(line)
                sources.append(source)
        return cls(lines, sources)

    def replace(self, i: int, *lines: str) -> "Program":
        """The program with other lines for line i."""
        parts = (self.lines[:i], list(lines), self.lines[i + 1 :])
        sources = (self.sources[:i], [self.sources[i]] * len(lines), self.sources[i + 1 :])
        return Program([x for part in parts for x in part], [x for part in sources for x in part])

    def target(self, i: int) -> int:
        """The line that branch i jumps to."""
        return min(self._labels[self.code[i].operands.strip()], key=lambda label: abs(label - i))

    def in_loop(self, i: int) -> bool:
        """Whether line i may run more than once."""
        return any(j >= i >= self.target(j) for j, found in self.code.items() if found.name.startswith("bra"))

    def closure(self, names: Iterable[str]) -> frozenset[str]:
        """These names and all that they are computed from, by any instruction but a load, whose address is included."""
        known = set(names)
        while True:
            before = len(known)
            for found in self.code.values():
                if found.writes & known:
                    known |= found.reads | found.guard
            if len(known) == before:
                return frozenset(known)

    def cut(self, effects: Iterable[int]) -> tuple["Program", frozenset[str]]:
        """The program of these instructions and what decides their addresses, guards and control; and those names."""
        kept, needed = set(effects), frozenset[str]()
        for i in kept:
            needed |= self.code[i].needs
        while True:
            before = len(kept), len(needed)
            for i, found in self.code.items():
                if i in kept:
                    continue
                if found.name.startswith("bra"):
                    low, high = sorted((i, self.target(i)))
                    if any(low < j < high for j in kept):
                        kept.add(i)
                        needed |= found.guard
                elif found.writes & needed:
                    kept.add(i)
                    needed |= found.reads | found.guard
            if (len(kept), len(needed)) == before:
                break
        rest = [i for i in range(len(self.lines)) if i in kept or i not in self.code]
        return Program([self.lines[i] for i in rest], [self.sources[i] for i in rest]), needed

    def block(self, block: int) -> "Program":
        """Only program `block` of the grid, all of its effects."""
        pinned = Program([re.sub(r"%ctaid\.x", str(block), line) for line in self.lines], self.sources)
        return pinned.without_values()

    def without_values(self) -> "Program":
        """All effects, without what computes only values."""
        effects = (i for i, found in self.code.items() if _EFFECT.match(found.name) and "param" not in found.name)
        return self.cut(effects)[0]

    def with_new_barriers(self) -> "Program":
        """With another place for barriers that are initialised again after `mbarrier.inval`, as NEW_BARRIERS says.

        Triton gives the barriers of a second loop the addresses of the first's, and those of a loop's next turn the
        addresses of this one's; the verifier takes one life of each. Here a register tells lives apart, and places of
        two lives are further from each other than there is shared memory. A barrier that is always initialised and
        invalidated, in the order of the text, with no `mbarrier.init` or `mbarrier.inval` of another one between has
        lives of its own, for the others may live on; those move on after the last `mbarrier.inval` in a row. One that
        lives on all the same would be looked for where it was never initialised, which the verifier refuses. Other data
        may lie in the bytes of a barrier before its life and after it: each end of a life is a store there, too.
        """
        uses = [i for i, found in self.code.items() if "mbarrier" in found.name or found.name.startswith("bra")]
        address = {i: match for i in uses if (match := re.search(r"\[\s*(%\w+)\s*\]", self.lines[i]))}
        ends = [i for i in uses if self.code[i].name.startswith("mbarrier.inval")]
        begins = [i for i in uses if self.code[i].name.startswith("mbarrier.init")]
        if not ends or not any(i > ends[0] or self.in_loop(i) for i in begins):
            return self
        marks = sorted([*begins, *ends])
        alone = {address[i][1] for i in ends}
        for before, i in pairwise([ends[0], *marks]):
            if i in ends and (before in ends or address[before][1] != address[i][1]):
                alone.discard(address[i][1])
        lives = {register: f"%life{number}" for number, register in enumerate(sorted(alone), start=1)}
        shared = [i for i in uses if i not in address or address[i][1] not in alone]
        moving = {i for i, after in zip_longest(shared, shared[1:]) if i in ends and after not in ends}
        moving |= {i for i in ends if address[i][1] in alone}
        program = self
        for i in reversed(address):
            line, place = self.lines[i], address[i]
            life = lives.get(place[1], "%life0")
            moved = f"{line[: place.start()]}[%place]{line[place.end() :]}"
            store = [f"{line[: line.index('mbarrier')]}st.shared.b64 [{place[1]}], 0;"] * (i in marks)
            further = [f"\tadd.u32 \t{life}, {life}, {LIFE};"] * (i in moving)
            program = program.replace(i, *store, f"\tadd.u32 \t%place, {place[1]}, {life};", moved, *further)
        body, names = self.lines.index("{"), ["%life0", *lives.values()]
        first = [f"\tmov.b32 \t{life}, {number * LIVES * LIFE};" for number, life in enumerate(names)]
        return program.replace(body, "{", f"\t.reg .b32 \t%place, {', '.join(names)};", *first)

    def respelt(self) -> "Program":
        """The same accesses in other words.

        Descriptors of shared memory in its 64- and 32-byte layouts have the highest bit, which PTX writes as a sign and
        the verifier takes for one: they are written without. Products of bf16 become those of fp16, which are of the
        same size, so that what differs in the dtype alone is verified once.
        """
        products = [found for found in self.code.values() if re.match(r"tcgen05\.mma\..*kind::f16", found.name)]
        kinds = {found.operands.split(",")[-2].strip() for found in products}
        lines = []
        for i, line in enumerate(self.lines):
            found = self.code.get(i)
            if found is not None and found.name in ("or.b64", "add.s64"):
                line = re.sub(r"-(\d{19});", lambda digits: f"{(1 << 64) - int(digits[1])};", line)
                line = line.replace("add.s64", "add.u64") if line != self.lines[i] else line
            elif found is not None and found.name == "mov.b32" and found.writes & kinds:
                line = re.sub(r"\b(\d+);", lambda digits: f"{int(digits[1]) & ~BF16};", line)
            lines.append(line)
        return Program(lines, self.sources)

    def grid(self) -> "Program":
        """Stores to global memory, and loads from what is also stored to."""
        pointers = {i: self.pointers(found) for i, found in self.code.items() if _touches_global(found.name)}
        stores = {i for i in pointers if not re.match(r"ld|cp\.async\.c[ag]\.shared", self.code[i].name)}
        stored = {name for i in stores for name in pointers[i]}
        anywhere = any(not pointers[i] for i in stores)  # an address from shared memory
        effects = [i for i, names in pointers.items() if i in stores or anywhere or not names or names & stored]
        return self.cut([*effects, *(i for i, found in self.code.items() if found.name == "ret")])[0]

    def pointers(self, access: Instruction) -> frozenset[str]:
        """The kernel's parameters that an address is computed from and that are pointers."""
        known = self.closure(access.address)
        loads = [found for found in self.code.values() if found.name == "ld.param.b64" and found.writes & known]
        return frozenset(name for found in loads for name in found.address)

    def has_shared(self) -> bool:
        """Whether shared memory is used."""
        return any("shared" in found.name or found.name.startswith("tcgen05") for found in self.code.values())

    def by_row(self) -> "Program":
        """With each `ldmatrix` of four matrices as loads of a row by the lane that gives its address, as ROWS says."""
        pattern = r"ldmatrix\.sync\.aligned\.m8n8\.x4(\.trans)?\.shared\.b16"
        return Program([re.sub(pattern, "ld.shared.v4.b32", line) for line in self.lines], self.sources)

    def stored_by_row(self) -> "Program":
        """With each `stmatrix` of one matrix as stores by the lane that gives a row's address, as STORED_ROWS says."""
        program = self
        for i, found in reversed(self.code.items()):
            if found.name == "stmatrix.sync.aligned.m8n8.x1.shared.b16" and not found.guard:
                address, value = found.operands.strip("[}").split("], {")
                program = program.replace(
                    i, "\t{ .reg .pred %first; .reg .b32 %lane;", "\tmov.u32 %lane, %laneid;",
                    "\tsetp.lt.u32 %first, %lane, 8;",
                    f"\t@%first st.shared.v4.b32 [{address}], {{{', '.join([value] * 4)}}};", "\t}",
                )  # fmt: skip
        return program

    def data(self) -> list[int]:
        """Loads whose values reach an address, a guard or a branch."""
        needed = frozenset(name for found in self.code.values() for name in found.needs | _computing(found))
        return [
            i for i, found in self.code.items()
            if re.match(r"(ld\.(shared|global)|ldmatrix|atom)", found.name) and found.writes & needed
        ]  # fmt: skip

    def decision(self) -> int | None:
        """A comparison that data decides, once for a whole block, and that control or addresses depend on."""
        for load in self.data():
            found = self.code[load]
            if self.closure(found.address) & {"%tid.x", "%laneid"} or found.guard:
                continue
            for i, comparison in self.code.items():
                if comparison.name.startswith("setp") and comparison.reads & found.writes and not self.in_loop(i):
                    return i
        return None


def _computing(found: Instruction) -> frozenset[str]:
    return frozenset() if _EFFECT.match(found.name) else found.reads


def _touches_global(name: str) -> bool:
    return "global" in name and re.match(r"(ld|st|atom|red|cp)\b", name) is not None
