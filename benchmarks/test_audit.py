"""GFLOPs and parameters of every row of the paper's Tables 1, 7 and 8, and of models whose figures others printed."""

from typing import Any

import pytest

from benchmarks.audit import audit, describe
from benchmarks.conftest import RESULTS, Cut
from benchmarks.controls import audit_control
from benchmarks.paper import CONTROLS, Published
from benchmarks.paper import ROWS as PAPER


@pytest.mark.parametrize("row", [*CONTROLS, *PAPER], ids=lambda row: f"{row.table}: {row.row}")
def test_audit(row: Published, benchmark: Any, cut: Cut, pytestconfig: pytest.Config) -> None:
    """The counts agree to the MAC, and no op runs uncounted. The difference to the paper is reported, not asserted."""
    long = row.options.get("frames", 8) > 8 or row.model in ("xclip_l14", "alt_l14")
    if long or not row.options.get("prompts", True):
        cut(f"audit, {row.table}, {row.row}")
    count = audit_control if row.table == "control" else audit
    found = benchmark.pedantic(count, args=(row,), rounds=1)
    found.check()
    pytestconfig.stash[RESULTS].add(describe(row, found))
