"""Result files as one self-contained HTML page, and the READMEs' tables: nothing in them but what was measured.

python -m benchmarks.report benchmarks/results/*.jsonl --out report.html --tables README.md benchmarks/README.md
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.break_even import BATCHES, REDUCTIONS, Ceilings, read_ceilings, speedup
from benchmarks.closed_form import VITS
from benchmarks.compare import read_results
from benchmarks.peers import DROPPED, OURS, PLAIN, PUBLISHED
from benchmarks.plots import draw_accuracy, draw_roofline, drawing

PARTS = ("patches", "blocks", "adapters", "matching", "projection", "alignment", "decoder", "classes", "norms")
NOT_MEASURED = "not measured"

Row = dict[str, Any]


def read_files(paths: Sequence[Path]) -> tuple[list[Row], list[Row]]:
    """Provenances, with the file's name, and all rows, each with the provenance it was measured under."""
    heads, rows = [], []
    for path in paths:
        head, found = read_results(path)
        heads.append(head | {"file": path.name})
        for row in found:
            own = row.get("provenance")  # of files that grow line by line
            rows.append(row | {"measured": heads[-1] if own is None else own | {"file": path.name}})
    return heads, rows


def latest(rows: Iterable[Row], *names: str) -> list[Row]:
    """The rows that have these, the last in time first; of those in which they are alike, the last alone.

    For counts, which do not scatter.
    """
    found: dict[tuple[Any, ...], Row] = {}
    own = [row for row in rows if set(names) <= set(row)]
    for row in sorted(own, key=lambda row: row["measured"]["time"], reverse=True):
        found.setdefault(tuple(row[name] for name in names), row)
    return list(found.values())


def audit_table(rows: Iterable[Row]) -> str:
    """Markdown: GFLOPs and parameters of every audited row beside the paper's, and K that would make GFLOPs equal."""
    lines = [
        "| | GFLOPs | paper | | K asked for | M parameters | paper | |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in latest(rows, "audit", "row"):
        paper, delta = row["paper"], row["delta_percent"]
        cells = [
            f"{row['audit']}, {row['row']}".removeprefix("control, "),
            f"{row['gflops']:,.1f}",
            show(paper["gflops"], "{:,g}"),
            show(delta["gflops"], "{:+.1f} %"),
            show(row.get("entities_asked_for"), "{:,}"),
            f"{row['parameters'] * 1e-6:.1f}",
            show(paper["params"], "{:g}"),
            show(delta["params"], "{:+.1f} %"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


Run = tuple[str, dict[str, Row]]  # case of a race, and what was measured, by contestant


def speed_table(rows: Iterable[Row]) -> str:
    """Markdown, for the README: speed-ups of encoders over themselves un-merged, of the last run of every race."""
    return _speeds(_last(_encoder_runs(rows)), "benchmarks/results")


def speed_runs_table(rows: Iterable[Row]) -> str:
    """Likewise, for benchmarks/README.md, of every run of every race in the order of their times."""
    return _speeds(_encoder_runs(rows), "results")


def _encoder_runs(rows: Iterable[Row]) -> list[Run]:
    return [run for run in _runs(rows) if {PLAIN, OURS, PUBLISHED} <= set(run[1])]


def _speeds(runs: Iterable[Run], folder: str) -> str:
    """folder: of the result files, seen from the text that has the table."""
    lines = [
        "| | FLOPs | published ToMe | alt-fast | dropped, not merged | rounds | |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for case, contestants in runs:
        ours = contestants[OURS]
        cells = [
            case.removesuffix(", float32"),
            f"{ours['flop_ratio']:.2f}",
            *(_speedup(contestants.get(name)) for name in (PUBLISHED, OURS, DROPPED)),
            str(ours["rounds"]),
            _source(ours, folder),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def alt_table(rows: Iterable[Row]) -> str:
    """Markdown, for the README: speed-ups of the whole ALT over itself un-merged, of the last run of every race."""
    return _steps(_last(_alt_runs(rows)), "benchmarks/results")


def alt_runs_table(rows: Iterable[Row]) -> str:
    """Likewise, for benchmarks/README.md, of every run of every race in the order of their times."""
    return _steps(_alt_runs(rows), "results")


def _alt_runs(rows: Iterable[Row]) -> list[Run]:
    return [run for run in _runs(rows) if run[0].startswith("alt_") and OURS in run[1]]


def _steps(runs: Iterable[Run], folder: str) -> str:
    """What is kept for backward is `activation_bytes`: runs before 2026-11-30 have most weights in `saved_bytes`."""
    lines = [
        "| | FLOPs | published ToMe | alt-fast | kept for backward: un-merged, published, alt-fast | rounds | |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for case, contestants in runs:
        ours = contestants[OURS]
        three = (contestants.get(name, {}).get("activation_bytes") for name in (ours["baseline"], PUBLISHED, OURS))
        kept = ["-" if size is None else f"{size / 2**20:,.0f}" for size in three]
        cells = [
            case.removesuffix(", float32"),
            f"{ours['flop_ratio']:.2f}",
            _speedup(contestants.get(PUBLISHED)),
            _speedup(ours),
            f"{', '.join(kept)} MiB" if set(kept) != {"-"} else NOT_MEASURED,
            str(ours["rounds"]),
            _source(ours, folder),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _runs(rows: Iterable[Row]) -> list[Run]:
    """Every run of every race: by race, then by time, so that none is chosen."""
    found = [
        (case, race[0]["measured"]["time"], {row["contestant"]: row for row in race if "speedup" in row})
        for (_, case), race in races(rows).items()
    ]
    return [(case, contestants) for case, _, contestants in sorted(found, key=lambda run: run[:2])]


def _last(runs: Iterable[Run]) -> Iterable[Run]:
    """The last run of every race."""
    return dict(runs).items()


def _source(row: Row, folder: str) -> str:
    head = row["measured"]
    return f"[{head['device']}]({folder}/{head['file']}), {head['commit'][:7]}"


def _speedup(row: Row | None) -> str:
    if row is None or "speedup" not in row:  # of a single round there are no quartiles
        return NOT_MEASURED
    low, high = row["speedup_quartiles"]
    return f"{row['speedup']:.2f} ({low:.2f} to {high:.2f})"


def quality_table(rows: Iterable[Row]) -> str:
    """Markdown: median cosine to the un-merged embedding, merged by similarity and at random."""
    lines = ["| | r | merged | merged at random |", "|---|--:|--:|--:|"]
    for row in rows:
        if "quality" in row:
            name = row["quality"] + (f", {row['rotary']}" if "rotary" in row else "")
            lines.append(f"| {name} | {row['r']} | {row['merged'][1]:.4f} | {row['random'][1]:.3f} |")
    return "\n".join(lines)


def fit_table(rows: Iterable[Row]) -> str:
    """Markdown: cosines to the un-merged embedding on the scene held out, by the constant r and the schedule fitted."""
    lines = [
        "| | r | fitted to | held out | FLOPs | constant: mean, median | fitted: mean, median | r per layer |",
        "|---|--:|---|---|--:|--:|--:|---|",
    ]
    for row in rows:
        if "fit" in row:
            found = [row["on_held_out"][how] for how in ("constant", "fitted")]
            cells = [
                *(row["fit"], str(row["r"]), ", ".join(row["fitted_to"]), row["held_out"]),
                f"{row['macs_unmerged'] / row['macs']['fitted']:.2f}",
                *(f"{of['mean']:.5f}, {of['quartiles'][1]:.5f}" for of in found),
                " ".join(map(str, row["schedule"])),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def towers_table(rows: Iterable[Row]) -> str:
    """Markdown: towers at their real size, merged and dropped: medians and quartiles of rounds."""
    lines = [
        "| | tokens | FLOP ratio | merged | dropped, not merged | of that | rounds |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if "tower" in row:
            merged, ceiling = (f"{x[1]:.2f} ({x[0]:.2f} to {x[2]:.2f})" for x in (row["speedup"], row["ceiling"]))
            share = f"{row['share_of_ceiling'][1]:.0%}"
            rounds = len(row["seconds"]["un-merged"])
            lines.append(
                f"| {row['tower']} | {row['tokens']:,} | {row['flop_ratio']:.2f} | {merged} | {ceiling} | {share} | "
                f"{rounds} |"
            )
    return "\n".join(lines)


def methods_table(rows: Iterable[Row]) -> str:
    """Markdown: ways to remove tokens, as `alt-fast judge` found them: a row by model, method, r, mode and batch."""
    lines = [
        "| | r | FLOPs | speed-up | ceiling | of it | cosine | least | top-1 | faults |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    about = None
    for row in rows:
        for raced in row.get("races", ()):
            if not raced["speedup"]:
                continue
            case = f"{row['model']}, {raced['mode']}, batch {raced['batch']}"
            if case != about:
                about = case
                lines.append(f"| **{case}** | | | | | | | | | |")
            (low, middle, high), agreement = raced["speedup"], row["agreement"]
            near = ("-", "-", "-")
            if agreement and row["weights"] != "random":
                near = (f"{agreement['cosine']:.4f}", f"{agreement['cosine_min']:.4f}", f"{agreement['same_top1']:.0%}")
            cells = [
                *(row["method"], f"{row['r']}", f"{row['flop_ratio']:.2f}", f"{middle:.2f} ({low:.2f} to {high:.2f})"),
                *((f"{raced['ceiling'][1]:.2f}", f"{raced['share'][1]:.0%}") if raced["ceiling"] else ("-", "-")),
                *near,
                ", ".join(fault["name"] for fault in row["faults"]) or "none",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def loader_table(rows: Iterable[Row]) -> str:
    """Markdown, for docs/data.md: clips per second of every race of decoders or loaders, and speed-ups in it."""
    lines = ["| | | clips/s | speed-up | over | |", "|---|---|--:|--:|---|---|"]
    for row in rows:
        if "clips" in row:
            rate = f"{row['clips'] / row['seconds']:.1f}"
            cells = [row["case"], row["contestant"], rate, _speedup(row), row.get("baseline", "")]
            lines.append(f"| {' | '.join(cells)} | {_source(row, '../benchmarks/results')} |")
    return "\n".join(lines)


def corpus_table(rows: Iterable[Row]) -> str:
    """Markdown: sizes of corpora, and how much of their labels they cover."""
    lines = [
        "| | entities | object | body | scene | motion | labels with >= 1, 3, 8 |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for row in latest(rows, "corpus"):
        categories = " | ".join(str(row["categories"][name]) for name in ("object", "body", "scene", "motion"))
        shares = ", ".join(f"{share:.0%}" for share in row["labels_with_at_least"].values())
        lines.append(f"| {row['corpus']} | {row['entities']} | {categories} | {shares} |")
    return "\n".join(lines)


def senses_table(rows: Iterable[Row]) -> str:
    """Markdown: how many of the hand-made choices of senses each chooser makes."""
    lines = ["| `--senses` | right |", "|---|--:|"]
    lines += [f"| {row['chooser']} | {row['right']} of {row['choices']} |" for row in latest(rows, "chooser")]
    return "\n".join(lines)


TABLES = {
    "audit": audit_table,
    "speed": speed_table,
    "speed-runs": speed_runs_table,
    "alt": alt_table,
    "alt-runs": alt_runs_table,
    "quality": quality_table,
    "fit": fit_table,
    "towers": towers_table,
    "methods": methods_table,
    "loader": loader_table,
    "corpus": corpus_table,
    "senses": senses_table,
}


def update_tables(text: str, rows: Sequence[Row]) -> str:
    """The text with every table between its marks made anew. Raises ValueError when it has no marks."""
    found = [name for name in TABLES if f"<!-- {name} -->" in text]
    if not found:
        raise ValueError(f"no {', '.join(f'<!-- {name} -->' for name in TABLES)} to put a table after")
    for name in found:
        before, mark, rest = text.partition(f"<!-- {name} -->")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not end:
            raise ValueError(f"no <!-- /{name} --> after {mark}")
        text = f"{before}{mark}\n{TABLES[name](rows)}\n{end}{after}"
    return text


def show(value: float | None, form: str) -> str:
    """A number, or nothing where others print none."""
    return "" if value is None else form.format(value)


def races(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows of each race, by file and case."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if {"case", "contestant"} <= set(row):  # other measurements have cases, too
            found.setdefault((row["measured"]["file"], row["case"]), []).append(row)
    return found


def render(heads: list[Row], rows: list[Row], paths: Sequence[Path]) -> str:
    """The page."""
    audited = latest(rows, "audit", "row")
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
        quality=[row for row in rows if "quality" in row],
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
    parser.add_argument(
        "--tables", type=Path, nargs="+", default=[], help="make the tables in these Markdown files anew"
    )
    options = parser.parse_args(arguments)
    try:
        heads, rows = read_files(options.results)
        for path in options.tables:
            path.write_text(update_tables(path.read_text(), rows))
        if options.out:
            options.out.write_text(render(heads, rows, options.results))
            print(f"written to {options.out}")
    except (ValueError, OSError) as e:
        parser.error(str(e))
    return 0


if __name__ == "__main__":
    sys.exit(main())
