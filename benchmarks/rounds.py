"""Contestants that run in turn, for quartiles of what each returns."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from alt_fast.measure.lines import Row
from alt_fast.measure.timing import in_turn


def quartiles(values: Iterable[float]) -> list[float]:
    """Low, median and high."""
    return statistics.quantiles(values, n=4, method="inclusive")


def measure(contestants: Mapping[str, Callable[[], Row]], rounds: int) -> dict[str, Row]:
    """Run all in turn; returns a row of each: quartiles of the floats that it returns, the other values once."""
    found: dict[str, list[Row]] = {name: [] for name in contestants}
    for name in in_turn(contestants, rounds):
        found[name].append(contestants[name]())
    return {
        name: {
            key: quartiles(row[key] for row in rows) if isinstance(value, float) else value
            for key, value in rows[0].items()
        }
        for name, rows in found.items()
    }


def show(name: str, row: Row) -> None:
    """Print a row; quartiles as the median, and from where to where."""
    parts = []
    for key, value in row.items():
        if isinstance(value, Sequence):
            low, middle, high = (f"{number:.4g}" for number in value)
            parts.append(f"{middle} ({low} to {high}) {key}")
        else:
            parts.append(f"{value:,} {key}")
    print(f"{name}: {', '.join(parts)}", flush=True)
