"""What was measured as drawings, SVG: accuracy over GFLOPs, a device's roofline, a sweep, a tower's way from CLIP's.

python -m benchmarks.plots sweep.jsonl --out sweep.svg
python -m benchmarks.plots benchmarks/results/zero-shot-2026-11-28.jsonl --out docs/interpolation.svg
"""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from alt_fast import cli
from alt_fast.errors import ArgumentError
from alt_fast.files import write_text
from alt_fast.measure.lines import Row, read_rows
from alt_fast.measure.sweep import front
from benchmarks.break_even import Ceilings
from benchmarks.paper import PEERS


def drawing(draw: Callable[[Any], None], title: str) -> str:
    """An SVG element of one set of axes that `draw` fills."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "alt-fast", "font.size": 10}):
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.grid(True, which="major", linewidth=0.4)
        axes.set_title(title)
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def draw_accuracy(rows: Sequence[Row]) -> Callable[[Any], None]:
    """Top-1 as the papers print it over GFLOPs: ALT's by our count, the others' as they print them."""

    def draw(axes: Any) -> None:
        axes.scatter([g for _, g, _ in PEERS], [top1 for *_, top1 in PEERS], color="grey", label="others, Table 1")
        beside = {"X-CLIP-L/14": (-6, -10), "EVL-L/14": (-6, 4), "MTV-H/16": (-6, -10), "ViViT-H/16": (-6, -10)}
        for name, gflops, top1 in PEERS:
            offset = beside.get(name, (6, -10))
            side = "left" if offset[0] > 0 else "right"
            axes.annotate(
                name, (gflops, top1), fontsize=7, xytext=offset, textcoords="offset points", horizontalalignment=side
            )
        for model, color in (("alt_b16", "tab:blue"), ("alt_l14", "tab:red")):
            own = [row for row in rows if row["audit"] == "Table 1" and row["model"] == model]
            accuracies = [row["paper"]["top1"] for row in own]
            axes.plot(
                [row["gflops"] for row in own],
                accuracies,
                "o-",
                color=color,
                label=f"{model}: our count, paper's top-1",
            )
            axes.plot(
                [row["paper"]["gflops"] for row in own], accuracies, "x", color=color, label=f"{model}: paper's count"
            )
        axes.set_xscale("log")
        axes.set_xlabel("GFLOPs of all views (10^9 MACs)")
        axes.set_ylabel("top-1 on Kinetics-400, %")
        axes.legend(fontsize=7)

    return draw


def draw_roofline(device: Ceilings, rows: Sequence[Row]) -> Callable[[Any], None]:
    """FLOP rate over FLOPs per byte of all rows that state both."""

    def draw(axes: Any) -> None:
        intensity = [0.25, 2 * device.macs / device.bytes, 2048.0]  # from end to end by the ridge
        axes.plot(intensity, [min(2 * device.macs, x * device.bytes) * 1e-9 for x in intensity], color="black")
        for row in rows:
            point = 2 * row["macs"] / row["bytes"], 2e-9 * row["macs"] / row["seconds"]
            axes.plot(*point, "o", label=f"{row['contestant']}, {row['case'].split(', ViT')[0]}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("FLOPs per byte")
        axes.set_ylabel("GFLOP/s")
        if rows:
            axes.legend(fontsize=7)

    return draw


def draw_sweep(rows: Sequence[Row]) -> Callable[[Any], None]:
    """Agreement over speed-up, with its quartiles, of every setting; a line through those that no other one beats."""

    def draw(axes: Any) -> None:
        best = [rows[place] for place in front(rows)]
        points = [row["speedup"][1] for row in best], [row["agreement"]["cosine"] for row in best]
        axes.plot(*points, "--", color="grey", linewidth=1)
        for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            own = [row for row in rows if row["method"] == method]
            low, middle, high = zip(*(row["speedup"] for row in own), strict=True)
            spread = [
                [b - a for a, b in zip(low, middle, strict=True)],
                [b - a for a, b in zip(middle, high, strict=True)],
            ]
            cosines = [row["agreement"]["cosine"] for row in own]
            axes.errorbar(
                middle, cosines, xerr=spread, fmt="o", color=f"C{number}", elinewidth=0.6, markersize=4, label=method
            )
        axes.set_xlabel("speed-up, median and quartiles")
        axes.set_ylabel("cosine of the outputs, median")
        axes.legend(fontsize=7, loc="lower left")

    return draw


SHARES = {"share-25": "1/4", "share-50": "1/2", "share-75": "3/4", "alt": "all"}
"""Rows of `benchmarks.zero_shot`, by how much of the way from CLIP's tower to the trained one they went."""


def draw_interpolation(rows: Sequence[Row]) -> Callable[[Any], None]:
    """Top-1 of unseen classes over that of trained ones, by how far towers went. Thin: each seed.

    As Wortsman et al. (arXiv 2109.01903) draw it, figure 1.
    """

    def draw(axes: Any) -> None:
        for color, level in enumerate(sorted({row["level"] for row in rows})):
            by = {(row["way"], row["seed"]): row for row in rows if row["level"] == level}
            seeds = sorted({seed for _, seed in by})
            lists = [[[100 * by[way, seed][name] for way in SHARES] for seed in seeds] for name in ("test", "unseen")]
            for own in zip(*lists, strict=True):
                axes.plot(*own, color=f"C{color}", linewidth=0.5, alpha=0.5)
            mean = [[sum(points) / len(seeds) for points in zip(*own, strict=True)] for own in lists]
            axes.plot(*mean, "o-", color=f"C{color}", label=f"level {level}, mean of {len(seeds)} seeds")
            for name, point in zip(SHARES.values(), zip(*mean, strict=True), strict=True):
                axes.annotate(name, point, fontsize=8, xytext=(5, -9), textcoords="offset points")
        axes.set_xlabel("top-1 on trained classes, %")
        axes.set_ylabel("top-1 on unseen classes, %")
        axes.legend(fontsize=7, loc="lower left")

    return draw


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path, help="of alt-fast judge --sweep --out, or of benchmarks.zero_shot")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="SVG to write")
    return parser


def work(given: argparse.Namespace) -> int:
    """Draw."""
    rows = read_rows(given.results)
    sweep = [row for row in rows if {"method", "speedup", "agreement"} <= row.keys()]
    ways = whole_ways(rows)
    if sweep:
        text = drawing(draw_sweep(sweep), f"{sweep[0]['model']}, {sweep[0]['provenance']['device']}")
    elif ways:
        text = drawing(draw_interpolation(ways), "Weights on the way from CLIP's tower to the trained one")
    else:
        raise ArgumentError(f"{given.results} has neither settings of a sweep nor towers on the way from CLIP's")
    write_text(given.out, text)
    return 0


def whole_ways(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of SHARES, by the options of the first, of seeds that have them all."""
    own = [row for row in rows if row.get("way") in SHARES]
    own = [row for row in own if row["options"] == own[0]["options"]]
    found = {(row["level"], row["seed"], row["way"]) for row in own}
    return [row for row in own if all((row["level"], row["seed"], way) in found for way in SHARES)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
