"""GFLOPs and parameters of every row of the paper's Tables 1, 7 and 8, and of models whose figures others printed."""

from typing import Any

import pytest

from benchmarks.audit import audit, describe
from benchmarks.conftest import ROWS
from benchmarks.controls import audit_control
from benchmarks.paper import CONTROLS, Published
from benchmarks.paper import ROWS as PAPER


@pytest.mark.parametrize("row", [*CONTROLS, *PAPER], ids=lambda row: f"{row.table}: {row.row}")
def test_audit(row: Published, benchmark: Any, request: pytest.FixtureRequest) -> None:
    """The counts agree to the MAC, and no op runs uncounted. The difference to the paper is reported, not asserted."""
    count = audit_control if row.table == "control" else audit
    found = benchmark.pedantic(count, args=(row,), rounds=1)
    found.check()
    request.config.stash[ROWS].append(describe(row, found))
