"""Races in the compiled kernels, by the static verifier `sentryward`; no GPU is needed.

    python -m alt_fast_kernels.prediction.verify                        # what the table says, in numbers
    python -m alt_fast_kernels.prediction.verify --all                  # every kernel, hours; rewrites races.jsonl
    python -m alt_fast_kernels.prediction.verify --kernel align --new   # what the table lacks, of some kernels
    python -m alt_fast_kernels.prediction.verify --sample 2             # recorded ones at random: none may be worse

The verifier executes PTX at fixed numbers and asks whether every two accesses that conflict are ordered. A kernel is
verified in two programs, each cut from its PTX (`Program`):

- block: the last program of a small grid (`small`); all of its memory and synchronisation;
- grid: all programs of that grid, at most MOST_PROGRAMS; its stores to global memory, and its loads from what it also
  writes, unordered.

What is cut away computes values that reach no address, guard or branch. That can only lose orderings, so that a race
of the kernel is one of the program too.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from torch import Tensor

from alt_fast_kernels.configs import Arch
from alt_fast_kernels.launch import Launch
from alt_fast_kernels.prediction.compiled import compile_for, made_of
from alt_fast_kernels.prediction.ptx import NAME, Program, first_operand
from alt_fast_kernels.prediction.record import configuration, launches

RECORD = Path(__file__).with_name("races.jsonl")
ARCHS: tuple[Arch, ...] = ("sm_80", "sm_100")

PROVEN, GIVEN, UNDECIDED, RACE = VERDICTS = ("proven", "proven given", "undecided", "race")
"""Best first. Proven given: under what `given` says, which the verifier did not prove."""

ROWS = "a lane that gives ldmatrix a row's address reads the row: of writes to it by that very lane nothing is said"
"""Given where `ldmatrix` was verified as loads by row: the same bytes for a warp, and a tenth of the time."""

STORED_ROWS = (
    "a lane that gives stmatrix a row's address writes the row: of its own other accesses to it nothing is said"
)
"""Given where `stmatrix` was verified as stores by row, so that lanes that write one row may be one writer."""

QUICK = 8.0  # seconds of CPU; longer ones are not sampled

NEW_BARRIERS = "mbarriers initialised again after their invalidation count as new ones, at another address"

ELECTION = "elect.sync chooses lane 0 of a warp: an assumption that the verifier makes by default"

MOST_PROGRAMS = 8  # of a grid, where it has more


Key = tuple[Arch, str, str]
"""Target, kernel, configuration."""


@dataclass(frozen=True)
class Row:
    """What is known of a kernel. grid, block: the verdicts of its two programs; block is empty without shared memory.

    given: what `proven given` rests on. reason: of what is not proven. seconds: of CPU. made_of: a fingerprint of the
    code, see `compiled.made_of`: a row says nothing of any other.
    """

    target: Arch
    kernel: str
    configuration: str
    grid: str
    block: str
    given: tuple[str, ...]
    reason: str
    seconds: float
    made_of: str

    @property
    def key(self) -> Key:
        return self.target, self.kernel, self.configuration

    @property
    def verdict(self) -> str:
        """The worse of the two."""
        return max(self.grid, self.block or PROVEN, key=VERDICTS.index)

    def worse_than(self, recorded: "Row") -> list[str]:
        """What has become worse, in words."""
        pairs = {"grid": (self.grid, recorded.grid), "block": (self.block or PROVEN, recorded.block or PROVEN)}
        return [
            f"{part}: {now}, {before} before" + (f" ({self.reason})" if self.reason else "")
            for part, (now, before) in pairs.items()
            if VERDICTS.index(now) > VERDICTS.index(before)
        ]


def parameters(launch: Launch, ptx: str) -> list[tuple[str, str, Any]]:
    """PTX parameter, its type, and what the launch passes; Triton folds what is 1 into the code.

    Raises RuntimeError when they do not match.
    """
    kernel = launch.kernel
    fixed = set(getattr(kernel, "do_not_specialize", None) or ())
    passed = [
        value
        for name, value in zip(kernel.arg_names, launch.args, strict=False)
        if value is not None and not (type(value) is int and value == 1 and name not in fixed)
    ]
    declared = re.findall(r"\.param \.([a-z]\d+)\s.*?(\w+_param_\d+)", ptx)
    if len(passed) + 2 != len(declared):  # two scratch pointers come last
        raise RuntimeError(f"{launch.name} takes {len(passed)} arguments, its PTX {len(declared)}")
    return [(name, kind, value) for (kind, name), value in zip(declared, passed, strict=False)]


def _input(launch: Launch, ptx: str, grid: int) -> dict[str, Any]:
    """The verifier's description of a launch. Every tensor is an allocation of its own, the views of one too."""
    arguments, declarations = [], []
    for name, kind, value in parameters(launch, ptx):
        if isinstance(value, Tensor):
            declarations.append({"parameter": name, "type": "pointer", "object": name})
        else:
            number = float(value) if kind.startswith("f") else int(value)
            arguments.append({"parameter": name, "type": kind.replace("s", "u"), "value": number})
    block = re.search(r"\.reqntid (\d+)", ptx)
    if block is None:
        raise RuntimeError(f"{launch.name}: no block size in its PTX")
    return {
        "schema": "spverify.kernel-input/v1",
        "launch": {"grid_dim": [grid, 1, 1], "block_dim": [int(block[1]), 1, 1]},
        "arguments": arguments,
        "declarations": declarations,
    }


def sentryward(program: Program, config: dict[str, Any], timeout: float) -> dict[str, Any]:
    """The verifier's report. Raises RuntimeError when it is not installed, or fails: that is no verdict."""
    report: dict[str, Any] = json.loads(_report("\n".join(program.lines) + "\n", json.dumps(config), timeout))
    if report["result"] in ("tool_failure", "invalid_input", "missing_input", "allocation_failed"):
        raise RuntimeError(f"sentryward verified nothing: {report['result']}, {report['diagnostics']}")
    return report


@lru_cache(maxsize=64)
def _report(ptx: str, config: str, timeout: float) -> str:
    command = [sys.executable, "-m", "sentryward"]
    with tempfile.TemporaryDirectory() as folder:
        kernel, settings = Path(folder) / "kernel.ptx", Path(folder) / "input.json"
        kernel.write_text(ptx)
        settings.write_text(config)
        done = subprocess.run(
            [*command, str(kernel), "--input", str(settings), "--timeout", str(timeout)], capture_output=True, text=True
        )
    if "No module named" in done.stderr:
        raise RuntimeError("races are proven by sentryward: pip install 'alt-fast[verify]'")
    return done.stdout


def _proof(
    program: Program, config: dict[str, Any], timeout: float, masks: dict[int, int] | None = None
) -> tuple[str, frozenset[str], str]:
    """Verdict, what it is given, and the reason, of a program.

    A comparison of data that is one for the block is decided both ways. Where two lanes write one word of shared memory
    in one instruction, all that differ as they do are assumed to write the same words, and one value: the first of them
    is left to write. masks: of `_one_writer`, what is known of them; those that are found are added.
    """
    masks = {} if masks is None else masks
    decision = program.decision()
    if decision is not None:
        what = f"data decide {_where(program, decision)} for a whole block: both ways were verified"
        found = program.code[decision]
        guard = program.lines[decision].lstrip().split(found.name)[0]
        outcome = next(iter(NAME.findall(first_operand(found.operands)[0])))
        parts = [
            _proof(
                program.replace(decision, f"\t{guard}setp.{test}.u32 \t{outcome}, 1, 0;").without_values(),
                config,
                timeout,
            )
            for test in ("ne", "eq")
        ]
        verdict = max((part[0] for part in parts), key=VERDICTS.index)
        given = frozenset({what}).union(*(part[1] for part in parts))
        return (GIVEN if verdict == PROVEN else verdict), given, "; ".join(sorted({part[2] for part in parts} - {""}))
    while True:
        patched = _one_writer(program, masks)
        report = sentryward(patched, config, timeout)
        given = frozenset(
            f"threads that differ in bits {mask:#b} alone write one value to the same words at {_where(program, i)}"
            for i, mask in masks.items()
        )
        if report.get("frontend", {}).get("frontend_assumptions", {}).get("election_uses"):
            given |= {ELECTION}
        if report["result"] == "race_free":
            return (GIVEN if given else PROVEN), given, ""
        if report["result"] != "potential_race":
            return UNDECIDED, given, _reason(report, patched)
        race = report["races"][0]
        first, second = race["first"], race["second"]
        lines = [access["location"]["line"] - 1 for access in (first, second)]
        words = f"{first['mode']} at {_where(patched, lines[0])}, {second['mode']} at {_where(patched, lines[1])}"
        line = _original(program, masks, lines[0])
        threads = config["launch"]["block_dim"][0]
        bits = (first["actor"] ^ second["actor"]) & (threads - 1)
        same = lines[0] == lines[1] and first["mode"] == second["mode"] == "write"
        if (
            not same
            or race["region"]["address_space"] != "shared"
            or bits.bit_count() != 1
            or bits & masks.get(line, 0)
        ):
            space, lanes = race["region"]["address_space"], (first["actor"], second["actor"])
            return RACE, given, f"{words}, in {space} memory by threads {lanes[0]} and {lanes[1]}"
        masks[line] = masks.get(line, 0) | bits


def _one_writer(program: Program, masks: dict[int, int]) -> Program:
    """Line i is left to threads in whose number no bit of masks[i] is set."""
    if not masks:
        return program
    for i in sorted(masks, reverse=True):
        found = program.code[i]
        bare = re.sub(r"^\s*@!?\S+\s+", "\t", program.lines[i])
        sign = "!" if "@!" in program.lines[i] else ""
        also = [f"\tand.pred %w, %w, {sign}{guard};" for guard in found.guard]
        if sign:
            also = [f"\tnot.pred %v, {guard};\n\tand.pred %w, %w, %v;" for guard in found.guard]
        program = program.replace(
            i, "\t{ .reg .pred %w; .reg .pred %v; .reg .b32 %t;",
            "\tmov.u32 %t, %tid.x;", f"\tand.b32 %t, %t, {masks[i]};", "\tsetp.eq.u32 %w, %t, 0;", *also,
            f"\t@%w {bare.strip()}", "\t}",
        )  # fmt: skip
    return program


def _original(program: Program, masks: dict[int, int], line: int) -> int:
    """The line of `program` that line `line` of its patched form is."""
    shift = 0
    for i in sorted(masks):
        added = len(_one_writer(program, {i: 1}).lines) - len(program.lines)
        if line >= i + shift + added:
            shift += added
        elif line >= i + shift:
            return i
    return line - shift


def _where(program: Program, line: int) -> str:
    return program.sources[line] or f"PTX line {line + 1}"


def _reason(report: dict[str, Any], program: Program) -> str:
    """Why nothing was proven, in short."""
    texts = []
    for found in report["diagnostics"][:2]:
        location = found.get("details", {}).get("location", {})
        where = ""
        if "line" in location and location["line"] <= len(program.lines):
            where = (
                f" at {_where(program, location['line'] - 1)}: {' '.join(program.lines[location['line'] - 1].split())}"
            )
        message = found.get("message", "")
        texts.append(f"{found['code']}{where}{'' if where else ' ' + message}"[:300])
    return f"{report['result']}: {'; '.join(texts)}"


def verify(arch: Arch, launch: Launch, timeout: float = 600, *, exact: bool = False) -> Row:
    """Compile a launch for a target and verify it. exact: leave each `ldmatrix` as it is, which takes minutes."""
    started = _cpu_seconds()
    ptx = compile_for(arch, launch).assembly
    program = Program.of(ptx).respelt()
    grids, blocks, given, reasons = [], [], set[str](), []
    masks: dict[int, int] = {}
    for reduced in small(launch):
        grid, more, reason = _proof(program.grid(), _input(reduced, ptx, reduced.grid), timeout)
        grids.append(grid)
        given |= more
        reasons += [f"grid: {reason}"] if reason else []
        if program.has_shared():
            alone = program.block(reduced.grid - 1)
            renewed = alone.with_new_barriers()
            stored = renewed.stored_by_row()
            by_row = stored if exact else stored.by_row()
            block, more, reason = _proof(by_row, _input(reduced, ptx, 1), timeout, masks)
            given |= more
            changes = {
                NEW_BARRIERS: renewed.lines != alone.lines,
                STORED_ROWS: stored.lines != renewed.lines,
                ROWS: by_row.lines != stored.lines,
            }
            if block in (PROVEN, GIVEN) and any(changes.values()):
                block, given = GIVEN, given | {what for what, changed in changes.items() if changed}
            blocks.append(block)
            reasons += [f"block: {reason}"] if reason else []
    grid, block = max(grids, key=VERDICTS.index), max(blocks, key=VERDICTS.index, default="")
    seconds = round(_cpu_seconds() - started, 1)
    return Row(
        arch, launch.name, configuration(launch), grid, block, tuple(sorted(given)), "; ".join(reasons), seconds,
        made_of(launch),
    )  # fmt: skip


def small(launch: Launch) -> list[Launch]:
    """The launch on fewer heads, images, tokens and entities: full tiles and a ragged one, loops of four turns.

    Where a short tail is streamed in narrow tiles, once with such a tail and once with a longer one. The code is the
    same: changed are numbers that it is not specialised on, or multiples of what it is. Strides stay.
    """
    if launch.options.get("NARROW"):
        return [_small(launch, 5), _small(launch, launch.options["BLOCK_N"] // 2 + 5)]
    return [_small(launch, 5)]


def _small(launch: Launch, left: int) -> Launch:
    """left: rows that attention streams behind the last full tile."""
    numbers = launch.arguments()
    changes: dict[str, int] = {}
    grid = min(launch.grid, MOST_PROGRAMS)
    if launch.name.startswith("attention"):
        owned, streamed = numbers["BLOCK_M"], numbers["BLOCK_N"]
        changes = {"num_heads": 2, "num_q": owned + 5, "num_k": 3 * streamed + left}
        if launch.name == "attention_bwd_kv":
            changes |= {"num_q": 3 * owned + left, "num_k": streamed + 5}
        grid = 2 * 2 * 2  # images, heads, tiles
    elif launch.name.startswith("align") and "ROWS" in numbers:
        rows = "num_rows" if "num_rows" in numbers else "num_tokens"
        changes = {rows: numbers["ROWS"] + 5, "width": 2 * numbers["BLOCK_C"]}
        grid = 2
    elif launch.name.startswith("align"):
        rows, entities = numbers["BLOCK_M"] + 5, numbers["BLOCK_N"]
        changes = {
            "num_tokens": rows,
            "period": rows,
            "width": 3 * numbers["BLOCK_C"],
            "num_entities": 5 * entities + 5,
        }
        if "per_split" in numbers:
            changes["per_split"] = 3 * entities
        else:
            changes |= {"first": 0 if numbers["first"] == 0 else 2 * entities, "chunk": entities + 5}
        grid = 2 * 2  # tiles of tokens, and splits or tiles of entities
    for name, value in changes.items():
        if name not in (launch.kernel.do_not_specialize or ()) and (value % 16 == 0) != (numbers[name] % 16 == 0):
            raise RuntimeError(f"{launch.name} is compiled for another kind of {name} than {value}")
    args = tuple(changes.get(name, value) for name, value in zip(launch.kernel.arg_names, launch.args, strict=False))
    return Launch(launch.kernel, grid, args, launch.options)


def _cpu_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def read() -> dict[Key, Row]:
    """The recorded rows by key."""
    if not RECORD.exists():
        return {}
    rows = [Row(**{**(fields := json.loads(line)), "given": tuple(fields["given"])}) for line in RECORD.open()]
    return {row.key: row for row in rows}


def write(rows: Iterable[Row]) -> None:
    """Record rows."""
    RECORD.write_text("".join(f"{json.dumps(asdict(row))}\n" for row in sorted(rows, key=lambda row: row.key)))


def stale(recorded: dict[Key, Row]) -> list[Key]:
    """Keys of rows that were verified of other code than is launched today."""
    today = {key: _launches(key[0]).get(key) for key in recorded}
    return [key for key, launch in today.items() if launch is None or made_of(launch) != recorded[key].made_of]


def regressions(rows: Iterable[Row], recorded: dict[Key, Row]) -> list[str]:
    """What has become worse than recorded, and races of what is not recorded, in words."""
    found = []
    for row in rows:
        known = recorded.get(row.key)
        worse = row.worse_than(known) if known else [row.reason] if row.verdict == RACE else []
        found += [f"{' '.join(row.key)}: {what}" for what in worse]
    return found


@lru_cache
def _launches(arch: Arch) -> dict[Key, Launch]:
    return launches(arch)


def _verify_keys(keys: Iterable[Key], timeout: float, exact: bool) -> list[Row]:
    """Of what differs in its dtype alone the first takes the time: it is what each would take."""
    rows = [verify(key[0], _launches(key[0])[key], timeout, exact=exact) for key in keys]
    return [replace(row, seconds=max(row.seconds for row in rows)) for row in rows]


def _varied(keys: Iterable[Key]) -> list[list[Key]]:
    """One of each target, kernel and size of numbers first, then another, so that a run that is cut short has seen all.

    Those that differ in which 16 bits they take are together.
    """
    alike: dict[Key, list[Key]] = {}
    for arch, kernel, chosen in keys:
        alike.setdefault((arch, kernel, re.sub("^(bf|fp)16", "16", chosen)), []).append((arch, kernel, chosen))
    turns: Counter[Key] = Counter()
    ordered = []
    for (arch, kernel, chosen), found in alike.items():
        kind = (arch, kernel, chosen.split()[0])
        turns[kind] += 1
        ordered.append((turns[kind], found))
    return [found for _, found in sorted(ordered, key=lambda item: item[0])]


def main(argv: list[str] | None = None) -> int:
    """Verify kernels and record what is found; print what is recorded."""
    parser = argparse.ArgumentParser(prog="python -m alt_fast_kernels.prediction.verify", description=__doc__)
    parser.add_argument("--all", action="store_true", help="verify every kernel, and rewrite the table")
    parser.add_argument("--new", action="store_true", help="verify what the table lacks, and add it")
    parser.add_argument("--kernel", default="", help="only kernels whose target, name and configuration contain this")
    parser.add_argument("--sample", type=int, default=0, help="verify this many of the quick recorded ones, at random")
    parser.add_argument("--seed", type=int, help="repeat a sample")
    parser.add_argument("--exact", action="store_true", help="leave ldmatrix as it is: minutes for a kernel")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for a program")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args(argv)
    recorded = read()
    faults: list[str] = []
    old = set(stale(recorded))
    if options.sample and old:
        found = "\n".join(" ".join(key) for key in sorted(old))
        print(f"{RECORD.name} is of other code: --new renews\n{found}", file=sys.stderr)
        return 1
    if options.sample:
        seed = random.randrange(2**31) if options.seed is None else options.seed
        quick = [
            key for key, row in recorded.items()
            if row.seconds <= QUICK and options.kernel in " ".join(key)
        ]  # fmt: skip
        keys = random.Random(seed).sample(quick, min(options.sample, len(quick)))
        sampled = [row for key in keys for row in _verify_keys([key], options.timeout, options.exact)]
        faults = regressions(sampled, recorded)
        print(
            *(f"{' '.join(row.key)}: {row.verdict}" for row in sampled),
            f"{len(sampled)} verified, --seed {seed}",
            sep="\n",
        )
        print(*faults, sep="\n", file=sys.stderr)
        return 1 if faults else 0
    if options.all or options.new:
        reachable = [key for arch in ARCHS for key in _launches(arch)]
        rows = {key: row for key, row in recorded.items() if key not in old}
        keys = [key for key in reachable if options.kernel in " ".join(key) and (options.all or key not in rows)]
        with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:  # as `record.compile_rows`
            tasks = [pool.submit(_verify_keys, same, options.timeout, options.exact) for same in _varied(keys)]
            for task in as_completed(tasks):
                for row in task.result():
                    print(f"{row.seconds:6.1f} s  {' '.join(row.key)}: {row.verdict} {row.reason}", flush=True)
                    faults += regressions([row], recorded)
                    rows[row.key] = row
                write(rows.values())
        recorded = rows
        old.clear()
    current = (row for key, row in recorded.items() if key not in old)
    for (target, kernel, verdict), count in sorted(
        Counter((row.target, row.kernel, row.verdict) for row in current).items()
    ):
        print(f"{target:7} {kernel:17} {verdict:13} {count}")
    print(*faults, sep="\n", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
