"""What `alt-fast judge` found, as lines to read and as a page."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alt_fast.files import write_text
from alt_fast.report.page import fill_page

Row = Mapping[str, Any]


def judgement_lines(row: Row) -> Iterator[str]:
    """Yield the lines about one method at one r. row: of `measure.judge.Judgement.as_row`, or why there is none."""
    if "refused" in row:
        yield f"{row['method']}, r = {row['r']}: not judged: {row['refused']}"
        return
    tokens = row["tokens"]
    yield f"{row['method']}, r = {row['r']}: {tokens['attention'][0]} tokens at first, {tokens['mlp'][-1]} at last"
    yield f"  FLOPs       x {row['flop_ratio']:.3f}, counted"
    if row["agreement"]:
        yield f"  agreement   {agreement_text(row['agreement'])}"
    for who, near in row["beside"].items():
        yield f"  {who}: {agreement_text(near) if near else 'returns what cannot be compared'}"
    for raced in row["races"]:
        yield f"  {raced['mode']}, batch {raced['batch']}".ljust(36) + race_text(raced)
    yield "  " + "; ".join(f"{name}: {found}" for name, found in row["properties"].items())
    for fault in row["faults"]:
        yield f"  FAULT {fault['name']}: {fault['what']} ({fault['seen']})"
    if not row["faults"]:
        yield "  no fault found"
    if row.get("verdict"):
        yield f"  {row['verdict']['text']}"


def agreement_text(agreement: Mapping[str, float]) -> str:
    """Spell how near outputs are to the un-merged model's."""
    return (
        f"cosine {agreement['cosine']:.4f} (least {agreement['cosine_min']:.4f}), largest difference "
        f"{agreement['max_difference']:.3g}, top-1 {agreement['same_top1']:.0%} the same"
    )


def race_text(raced: Row) -> str:
    """Spell one race."""
    parts = ["not measured"]
    if raced["speedup"] is not None:
        low, middle, high = raced["speedup"]
        parts = [f"x {middle:.2f} ({low:.2f} to {high:.2f})"]
        if raced["ceiling"] is not None:
            parts.append(f"ceiling {raced['ceiling'][1]:.2f}   {raced['share'][1]:.0%} of it")
    parts += [f"{who} x {found[1]:.2f}" for who, found in raced["beside"].items() if found is not None]
    if raced["memory"]:
        parts.append(", ".join(f"{who} {size / 2**20:,.0f} MiB" for who, size in raced["memory"].items()))
    parts += [f"{who} without a CUDA graph: {why}" for who, why in raced["uncaptured"].items()]
    parts += [f"{who} did not run: {why}" for who, why in raced["skipped"].items()]
    return "   ".join(parts)


def sweep_lines(rows: Sequence[Row], front: Sequence[int]) -> Iterator[str]:
    """Yield a table of settings, fastest first. front: the places in `rows` that no other one beats."""
    yield f"  {'method':<12}{'r':>8}{'FLOPs':>9}{'speed-up':>10}{'quartiles':>16}{'cosine':>9}{'least':>9}{'top-1':>8}"
    for i in sorted(range(len(rows)), key=lambda i: -rows[i]["speedup"][1]):
        row, (low, middle, high) = rows[i], rows[i]["speedup"]
        agreement = row["agreement"]
        yield (
            f"{'*' if i in front else ' '} {row['method']:<12}{row['r']!s:>8}{row['flop_ratio']:9.3f}{middle:10.2f}"
            f"{f'{low:.2f} to {high:.2f}':>16}{agreement['cosine']:9.4f}{agreement['cosine_min']:9.4f}"
            f"{agreement['same_top1']:8.0%}"
        )
    yield "* faster than the model, and no other setting is as fast and agrees as well (overlapping quartiles: noise)"


def write_judgement(
    path: Path, about: Mapping[str, Any], rows: Sequence[Row], settings: Sequence[Row], front: Sequence[int]
) -> None:
    """Write the page. about: model, images, provenance. rows: judgements. settings: a sweep's. Raises FileError."""
    data = {"about": about, "rows": list(rows), "sweep": list(settings), "front": list(front)}
    write_text(path, fill_page("judge.html", data))
