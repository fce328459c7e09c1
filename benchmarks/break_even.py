"""When merging pays: predicted times of a ViT with and without it, from costs and a device's ceilings (a roofline).

    python -m benchmarks.break_even --results benchmarks/results/FILE.jsonl       # ceilings measured by the benchmarks
    python -m benchmarks.break_even --tflops 600 --gbps 2500 --launch-us 0        # or your own

A prediction, not a measurement: every stage takes the longer of its MACs at the matmul rate and its bytes at the copy
rate, plus a launch for each of its kernels (0 under CUDA graphs and on a CPU).
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from alt_fast_kernels.cost import Cost, attention_cost, match_cost, merge_cost
from benchmarks.closed_form import VITS, ViT, token_counts
from benchmarks.compare import read_results

MATCH_LAUNCHES = 3
BATCHES = (1, 8, 64, 256)
REDUCTIONS = (4, 8, 13, 16)


@dataclass(frozen=True)
class Ceilings:
    """Of a device. macs: per second, by matmuls. bytes: per second, by copies. launch: seconds per kernel."""

    macs: float
    bytes: float
    launch: float = 0.0
    itemsize: int = 2

    def seconds(self, cost: Cost, launches: int = 1) -> float:
        """The roofline's time of one stage."""
        return max(cost.macs / self.macs, cost.bytes / self.bytes) + launches * self.launch


def predict(vit: ViT, r: int, batch: int, device: Ceilings) -> float:
    """Seconds of the blocks on `batch` images; fused as ours: a block without merging pays add and norm alike."""
    width, size = vit.width, device.itemsize

    def linear(tokens: int, inputs: int, outputs: int) -> Cost:
        rows = batch * tokens
        moved = rows * (inputs + outputs) + inputs * outputs
        return Cost(rows * inputs * outputs, moved * size)

    def elementwise(tokens: int, tensors: int, channels: int = width) -> Cost:
        return Cost(0, batch * tokens * channels * tensors * size)

    total = 0.0
    for tokens, merged in token_counts(vit, r):
        left = tokens - merged
        stages = [
            (elementwise(tokens, 4), 1),  # add, norm: two tensors read, two written
            (linear(tokens, width, 3 * width), 1),
            (attention_cost(batch, tokens, tokens, vit.num_heads, width // vit.num_heads, size), 1),
            (linear(tokens, width, width), 1),
            (linear(left, width, 4 * width), 1),
            (elementwise(left, 2, 4 * width), 1),  # GELU
            (linear(left, 4 * width, width), 1),
        ]
        if merged:
            stages.append((match_cost(batch, tokens, vit.num_heads, width // vit.num_heads, 1, size), MATCH_LAUNCHES))
        merging = merge_cost(batch, tokens, merged, width, size, residual=True, norm=True)
        stages.append((Cost(0, merging.bytes), 1))  # elementwise; without merging it is the plain add and norm
        total += sum(device.seconds(cost, launches) for cost, launches in stages)
    return total


def speedup(vit: ViT, r: int, batch: int, device: Ceilings) -> float:
    """Predicted time un-merged over merged: above 1 merging pays."""
    return predict(vit, 0, batch, device) / predict(vit, r, batch, device)


def read_ceilings(path: Path) -> Ceilings:
    """The measured ceilings of a result file. Raises ValueError when it has none."""
    rows = [row for row in read_results(path)[1] if row.get("case", "").startswith("ceilings")]
    rates = {row["contestant"]: row.get("macs", row.get("bytes")) / row["seconds"] for row in rows}
    if set(rates) != {"copy", "matmul"}:
        raise ValueError(f"{path} has no measured ceilings: run benchmarks/test_ops.py -k ceilings --results {path}")
    return Ceilings(rates["matmul"], rates["copy"], itemsize=4 if "float32" in rows[0]["case"] else 2)


def table(device: Ceilings) -> list[str]:
    """Predicted speed-ups by model, r and batch, with the smallest batch at which merging pays."""
    lines = [
        f"{2e-12 * device.macs:.2f} TFLOP/s, {1e-9 * device.bytes:.1f} GB/s, {device.itemsize} bytes per number, "
        f"{1e6 * device.launch:g} us per launch",
        f"{'':<28}" + "".join(f"{f'batch {batch}':>12}" for batch in BATCHES) + f"{'pays from':>12}",
    ]
    for name, vit in VITS.items():
        for r in REDUCTIONS:
            gains = [speedup(vit, r, batch, device) for batch in BATCHES]
            first = next((batch for batch in range(1, BATCHES[-1] + 1) if speedup(vit, r, batch, device) > 1), None)
            label = f"{name.removesuffix('_224')}, r = {r}"
            lines.append(f"{label:<28}" + "".join(f"{gain:12.2f}" for gain in gains) + f"{first or 'never':>12}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.break_even", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, help="result file with measured ceilings")
    parser.add_argument("--tflops", type=float, help="matmul rate, two FLOPs per MAC")
    parser.add_argument("--gbps", type=float, help="copy rate, GB/s read and written")
    parser.add_argument("--launch-us", type=float, default=0.0, help="time per kernel launch (default 0: CUDA graphs)")
    parser.add_argument("--itemsize", type=int, choices=(2, 4), help="bytes per number (default 2: bf16)")
    options = parser.parse_args(arguments)
    rates = (options.tflops, options.gbps)
    if any((rate is None) == (options.results is None) for rate in rates):
        parser.error("give --results, or both --tflops and --gbps")
    if options.results and options.itemsize is not None:
        parser.error("--itemsize has no effect on --results, which say it")
    if options.launch_us < 0 or any(rate is not None and not rate > 0 for rate in rates):
        parser.error("--tflops and --gbps must be > 0, and --launch-us >= 0")
    try:
        if options.results:
            device = replace(read_ceilings(options.results), launch=options.launch_us * 1e-6)
        else:
            itemsize = options.itemsize or 2
            device = Ceilings(options.tflops * 0.5e12, options.gbps * 1e9, options.launch_us * 1e-6, itemsize)
    except ValueError as e:
        parser.error(str(e))
    print("\n".join(table(device)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
