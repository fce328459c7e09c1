"""Result files as one self-contained HTML page, and the README's tables: nothing in them but what was measured.

python -m benchmarks.report benchmarks/results/*.jsonl --out report.html --readme README.md
"""

import argparse
import io
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from benchmarks.break_even import BATCHES, REDUCTIONS, Ceilings, read_ceilings, speedup
from benchmarks.closed_form import VITS
from benchmarks.compare import read_results
from benchmarks.paper import PEERS

PARTS = ("patches", "blocks", "adapters", "matching", "projection", "alignment", "decoder", "classes", "norms")
MARKS = ("<!-- audit -->", "<!-- /audit -->")
NOT_MEASURED = "not measured"

Row = dict[str, Any]


def read_files(paths: Sequence[Path]) -> tuple[list[Row], list[Row]]:
    """Provenances, with the file's name, and all rows, each with the provenance it was measured under."""
    heads, rows = [], []
    for path in paths:
        head, found = read_results(path)
        heads.append(head | {"file": path.name})
        rows += [row | {"measured": heads[-1]} for row in found]
    return heads, rows


def readme_table(rows: Iterable[Row]) -> str:
    """Markdown: GFLOPs and parameters of every audited row beside the paper's."""
    lines = [
        "| | GFLOPs | paper | | M parameters | paper | |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if "audit" not in row:
            continue
        paper, delta = row["paper"], row["delta_percent"]
        cells = [
            f"{row['audit']}, {row['row']}".removeprefix("control, "),
            f"{row['gflops']:,.1f}",
            show(paper["gflops"], "{:,g}"),
            show(delta["gflops"], "{:+.1f} %"),
            f"{row['parameters'] * 1e-6:.1f}",
            show(paper["params"], "{:g}"),
            show(delta["params"], "{:+.1f} %"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def update_readme(text: str, table: str) -> str:
    """The README with `table` between its marks. Raises ValueError when it has none."""
    before, mark, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not mark or not end:
        raise ValueError(f"no {MARKS[0]} ... {MARKS[1]} to put the table in")
    return f"{before}{mark}\n{table}\n{end}{after}"


def show(value: float | None, form: str) -> str:
    """A number, or nothing where others print none."""
    return "" if value is None else form.format(value)


def races(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows of each race, by file and case."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if "case" in row:
            found.setdefault((row["measured"]["file"], row["case"]), []).append(row)
    return found


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
        for place, (name, gflops, top1) in enumerate(PEERS):  # at three heights, since some lie close together
            offset = (4, 2 + 8 * (place % 3 - 1))
            axes.annotate(name, (gflops, top1), fontsize=7, xytext=offset, textcoords="offset points")
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
        intensity = [2**i for i in range(-2, 12)]
        axes.plot(intensity, [min(2 * device.macs, x * device.bytes) * 1e-9 for x in intensity], color="black")
        for row in rows:
            point = 2 * row["macs"] / row["bytes"], 2e-9 * row["macs"] / row["seconds"]
            axes.plot(*point, "o", label=f"{row['contestant']}, {row['case'].split(':')[0]}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("FLOPs per byte")
        axes.set_ylabel("GFLOP/s")
        if rows:
            axes.legend(fontsize=7)

    return draw


def render(heads: list[Row], rows: list[Row], paths: Sequence[Path]) -> str:
    """The page."""
    audited = [row for row in rows if "audit" in row]
    ceilings: dict[str, Ceilings] = {}
    for path, head in zip(paths, heads, strict=True):
        if any(row.get("case", "").startswith("ceilings") for row in rows if row["measured"] is head):
            ceilings[head["file"]] = read_ceilings(path)
    rooflines = []
    for name, device in ceilings.items():
        both = [row for row in rows if row["measured"]["file"] == name and {"macs", "bytes", "seconds"} <= set(row)]
        rooflines.append(drawing(draw_roofline(device, both), name))
    break_even = {
        name: [
            (f"{vit.removesuffix('_224')}, r = {r}", [speedup(VITS[vit], r, batch, device) for batch in BATCHES])
            for vit in VITS
            for r in REDUCTIONS
        ]
        for name, device in ceilings.items()
    }
    measured_on_gpu = any("cuda" in head for head in heads)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((Path(__file__).parent / "report.html.jinja").read_text())
    return template.render(
        heads=heads,
        audited=audited,
        parts=PARTS,
        show=show,
        accuracy=drawing(draw_accuracy(audited), "Accuracy and computation") if audited else None,
        races=races(rows),
        ladder=[row for row in rows if row.get("case", "").startswith("ladder")],
        rooflines=rooflines,
        break_even=break_even,
        batches=BATCHES,
        measured_on_gpu=measured_on_gpu,
        not_measured=NOT_MEASURED,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path, nargs="+", help="result files, JSON lines")
    parser.add_argument("--out", type=Path, help="write the page here")
    parser.add_argument("--readme", type=Path, help="put the audit's table between the marks in this file")
    options = parser.parse_args(arguments)
    try:
        heads, rows = read_files(options.results)
        if options.readme:
            options.readme.write_text(update_readme(options.readme.read_text(), readme_table(rows)))
    except ValueError as e:
        parser.error(str(e))
    if options.out:
        options.out.write_text(render(heads, rows, options.results))
        print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
