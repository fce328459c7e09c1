"""What the kernels take and how long they should run, read from compiled code with no GPU; beside one, also measured.

    python -m alt_fast_kernels.predict                    # times on an H100, of ops, blocks and whole towers
    python -m alt_fast_kernels.predict --op attention --set bandwidth=2.6e12
    python -m alt_fast_kernels.predict --host             # what a block's calls cost the host, measured here
    python -m alt_fast_kernels.predict --resources        # every kernel in every configuration on every target
    python -m alt_fast_kernels.predict --record           # those that changed, into prediction/resources.jsonl
    python -m alt_fast_kernels.predict --sample 20        # some of one target anew: they must be as recorded

A predicted time is a model's: the largest of bytes / bandwidth, FLOPs / throughput and instructions / issue rate, plus
what a launch costs; PyTorch's own kernels around ours are bytes or FLOPs, and a launch each. Ratios between variants of
a kernel are worth more than times. Exits with 1 where a kernel spills, does not fit, loads or stores its tokens two
bytes at a time, is worse than recorded or, of a sample, not as recorded, and where a call cannot be measured.
"""

import argparse
import dataclasses
import itertools
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from triton.errors import TritonError

from alt_fast_kernels.prediction import record
from alt_fast_kernels.prediction.cases import LAYOUTS, Case, align_case, attention_case, match_case, merge_case
from alt_fast_kernels.prediction.compiled import TARGETS
from alt_fast_kernels.prediction.host import FRAMES, block_cases, host_seconds
from alt_fast_kernels.prediction.measured import measured
from alt_fast_kernels.prediction.model import Machine
from alt_fast_kernels.prediction.towers import B16, L14, Predictor

LENGTHS = {B16: (197, 149, 109), L14: (257, 169, 81)}
BATCHES = (256, 8, 1)  # frames: training, one clip, one frame
LONG = (1025, 4097, 16385)


def cases() -> Iterator[Case]:
    """What times are predicted for."""
    for tower, lengths in LENGTHS.items():
        dim = tower.width // tower.heads
        for batch in BATCHES:
            for num_tokens in lengths:
                yield match_case(batch, num_tokens, tower.heads, dim, 8)
                yield attention_case(batch, num_tokens, tower.heads, dim)
                yield merge_case(batch, num_tokens, 8, tower.width)
        for layout, wide in itertools.product(LAYOUTS, (False, True)):
            yield attention_case(256, tower.tokens, tower.heads, dim, layout=layout, wide=wide)
        yield attention_case(256, tower.tokens, tower.heads, dim, backward=True)
        for layout, wide in itertools.product(LAYOUTS, (False, True)):
            yield attention_case(256, tower.tokens, tower.heads, dim, layout=layout, wide=wide, backward=True)
        yield merge_case(256, tower.tokens, 8, tower.width, backward=True)
    for backward, positions in itertools.product((False, True), (None, *LAYOUTS)):  # DINOv3 7B/16
        yield attention_case(32, 201, 32, 128, layout=positions, backward=backward)
    for batch in (256, 8):  # ViT-L/14 at 336 pixels
        yield match_case(batch, 577, 16, 64, 8)
        yield attention_case(batch, 577, 16, 64)
        yield merge_case(batch, 577, 8, 1024)
    for num_tokens in LONG:
        yield match_case(1, num_tokens, 16, 64, num_tokens // 16)
    yield match_case(8, 1568, 12, 64, 1411, every=10)  # VideoMAE-B loses 90 % in one layer
    for backward, noise in itertools.product((False, True), (False, True)):
        yield align_case(256 * 101, 5000, 512, noise=noise, backward=backward)


def print_times(predictor: Predictor, op: str = "") -> int:
    """A table of calls of ops whose name begins with `op`; the number of those that could not be measured.

    The sum of an op's kernels and of PyTorch's around them, what bounds each, and the floor of `cost`; beside a GPU
    also measured.
    """
    gpu = torch.cuda.is_available()
    failures = 0
    print("| op | shape | predicted us | floor us | ratio | kernels, and what bounds them |", end="")
    print(" measured us | error |" if gpu else "")
    print("|---|---|--:|--:|--:|---|" + ("--:|--:|" if gpu else ""))
    with torch.device("cuda" if gpu else "cpu"):
        for case in cases():
            if not case.op.startswith(op):
                continue
            found = predictor.op(case)
            kernels = [f"{launch.name} {_us(time.predicted)} ({time.limit})" for launch, _, time in found.kernels]
            if found.around:
                kernels.append(f"{len(found.around)} of PyTorch's {_us(found.time_around)}")
            line = f"| {case.op} | {case.shape} | {_us(found.time)} | {_us(found.floor)} |"
            line += f" {found.time / found.floor:.1f} | {', '.join(kernels)} |"
            if gpu:
                try:
                    seconds = measured(case)
                    line += f" {_us(seconds)} | {found.time / seconds - 1:+.0%} |"
                except (RuntimeError, TritonError) as error:  # of this call: the next may run
                    failures += 1
                    line += f" not measured: {str(error).partition(chr(10))[0]} | |"
            print(line, flush=True)
    return failures


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.{0 if seconds > 1e-5 else 1}f}"


def print_blocks(predictor: Predictor) -> None:
    """A table of blocks that merge 8 tokens: their parts, and the share of the time that merging adds."""
    print("| block | frames | N | attention us | match us | merge us | rest us | overhead of merging |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for tower, lengths in LENGTHS.items():
        for batch in BATCHES:
            for num_tokens in lengths:
                for layout in (None, *LAYOUTS) if num_tokens == tower.tokens else (None,):
                    block = predictor.block(tower, batch, num_tokens, 8, layout)
                    parts = " | ".join(map(_us, (block.attention, block.matching, block.merging, block.rest)))
                    name = f"{tower.name}, rotary {layout}" if layout else tower.name
                    print(f"| {name} | {batch} | {num_tokens} | {parts} | {block.overhead:.1%} |")


def print_towers(predictor: Predictor) -> None:
    """A table of whole towers: speed-up over the un-merged one, on either attention (`Predictor.unmerged_block`).

    Launch by launch, and as a CUDA graph, where few images match beside attention.
    """
    print("| tower | frames | r | over FlashAttention 3's class | as a graph | or ours, the faster | as a graph |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for tower, r in ((B16, 8), (B16, 13), (L14, 8)):
        for batch in BATCHES:
            ways = itertools.product((False, True), (False, True))
            speedups = [predictor.speedup(tower, batch, r, aside, ours) for ours, aside in ways]
            print(f"| {tower.name} | {batch} | {r} | {' | '.join(f'{x:.2f}' for x in speedups)} |")


def print_resources(rows: list[record.Row]) -> None:
    """A table of compiled kernels; blocks and warps: resident on a multiprocessor."""
    print("| target | kernel | configuration | registers | spills | shared | blocks | warps | loop | loads | stores |")
    print("|---|---|---|--:|--:|--:|--:|--:|---|---|---|")
    for row in rows:
        loop = ", ".join(f"{count} {kind}" for kind, count in row.loop.items())
        loads, stores = (
            ", ".join(f"{count} x {width} B" for width, count in widths.items()) for widths in (row.loads, row.stores)
        )
        print(
            f"| {row.target} | {row.kernel} | {row.configuration} | {row.registers} | {row.spills} | {row.shared} | "
            f"{row.blocks} | {row.blocks * row.warps} | {loop} | {loads} | {stores} |"
        )


def compile_all(options: Any) -> int:
    """Print the resources of every kernel, or record those that changed; 1 when something is at fault."""
    recorded = record.read()
    keys = None  # all of them, which the compiling processes find themselves
    if options.record:
        keys = record.stale(recorded)
    elif options.target or options.op:
        found = (key for target in options.target or TARGETS for key in record.launches(target))
        keys = [key for key in found if key[1].startswith(options.op)]
    rows = record.compile_rows(keys, options.workers)
    faults = list(record.regressions(rows, recorded))
    if options.resources:
        print_resources(rows)
    print(f"{len(rows)} kernels compiled, {len(faults)} faults", *faults, sep="\n", file=sys.stderr)
    if options.record and (options.accept or not faults):
        changed = set(keys or ())
        record.write([*rows, *(row for key, row in recorded.items() if key not in changed)])
    return 1 if faults and not options.accept else 0


def compile_sample(size: int, workers: int | None) -> int:
    """Compile some recorded kernels of one target, others every time; 1 if one is not as recorded, or all are old."""
    recorded = record.read()
    if stale := record.stale(recorded):
        found = "\n".join(" ".join(key) for key in stale)
        print(f"{record.RECORD.name} is of other sources or another Triton: --record renews\n{found}", file=sys.stderr)
        return 1
    target = random.choice(list(TARGETS))
    of_target = sorted(key for key in recorded if key[0] == target)
    keys = random.sample(of_target, min(size, len(of_target)))
    changed = [row for row in record.compile_rows(keys, workers) if row != recorded[row.key]]
    for row in changed:
        print(f"recorded {recorded[row.key]}\ncompiled {row}", file=sys.stderr)
    print(f"{len(keys)} of {len(of_target)} kernels compiled for {target}, {len(changed)} not as recorded")
    return 1 if changed else 0


def print_host() -> None:
    """A table of what a block's calls cost the host."""
    print(f"CPU time on this host, {FRAMES} frames of {B16.name}: medians of 15 rounds of 100 calls.\n")
    print("| op | us of the host |\n|---|--:|")
    found = host_seconds(block_cases(B16))
    for op, seconds in found.items():
        print(f"| {op} | {_us(seconds)} |")
    print(f"| together | {_us(sum(found.values()))} |")


def _machine(settings: list[str]) -> Machine:
    """The constants, with NAME=VALUE settings. Raises ValueError naming what is none."""
    fields = {field.name: field.type for field in dataclasses.fields(Machine)}
    changes = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in fields:
            raise ValueError(f"--set takes NAME=VALUE with NAME of {', '.join(fields)}; got {setting!r}")
        changes[name] = type(getattr(Machine(), name))(float(value))
    return dataclasses.replace(Machine(), **changes)


def main(argv: list[str] | None = None) -> int:
    """Print predictions, or resources."""
    lines = (__doc__ or "").split("\n")
    parser = argparse.ArgumentParser(prog="python -m alt_fast_kernels.predict", description=lines[0])
    parser.add_argument("--op", default="", help="only ops, or kernels, whose name begins like this")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override a constant")
    parser.add_argument("--host", action="store_true", help="measure what a block's calls cost the host, without a GPU")
    parser.add_argument("--resources", action="store_true", help="compile every kernel for every target, and tabulate")
    parser.add_argument("--record", action="store_true", help="compile what changed and keep it, unless it is worse")
    parser.add_argument("--accept", action="store_true", help="with --record: keep it even so")
    parser.add_argument("--sample", type=int, metavar="N", help="compile N recorded kernels, drawn at random")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="with --resources; repeatable")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that compile")
    options = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("unset TRITON_INTERPRET: interpreted kernels are not compiled")
    if options.record and (options.op or options.target):
        parser.error("--record is of everything: leave out --op and --target")
    if options.sample is not None:
        return compile_sample(options.sample, options.workers)
    if options.resources or options.record:
        return compile_all(options)
    if options.host:
        print_host()
        return 0
    try:
        machine = _machine(options.set)
    except ValueError as error:
        parser.error(str(error))
    predictor = Predictor(machine)
    constants = ", ".join(f"{field.name} {getattr(machine, field.name):g}" for field in dataclasses.fields(machine))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: nothing here is measured"
    print(f"Predicted from code compiled for sm_90 ({constants}). {device}.\n")
    failures = print_times(predictor, options.op)
    if not options.op:
        print()
        print_blocks(predictor)
        print()
        print_towers(predictor)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
