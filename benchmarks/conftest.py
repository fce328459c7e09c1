"""The `race` fixture: contestants timed in interleaved rounds, one row each in the summary and the result file."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import alt_fast  # noqa: F401  (before timm: see alt_fast/_torchvision.py)
from alt_fast.measure.timing import WARM_UP, Race, Step, every_compilation_counts
from benchmarks.encoders import Encoders
from benchmarks.session import CUT, EVERYONE, Once, Results, Row

STARTED = pytest.StashKey[float]()
RESULTS = pytest.StashKey[Results]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="on a CPU too: every r, contestant and round; a GPU cuts none")
    parser.addoption("--results", type=Path, help="write all measurements to this file as they come, as JSON lines")
    parser.addoption("--time-limit", type=float, help="seconds after which no further benchmark starts")
    parser.addoption("--tome", type=Path, help="checkout of github.com/facebookresearch/ToMe, raced beside ours")
    parser.addoption("--flashbias", type=Path, help="checkout of github.com/thuml/FlashBias, raced beside ours")
    parser.addoption("--rounds", type=int, help="rounds of every race; by default each benchmark's own number")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = Results(config.getoption("--results"))
    config.stash[STARTED] = time.monotonic()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Contestants that are compiled may take longer than the tests' timeout on a slow machine."""
    for item in items:
        item.add_marker(pytest.mark.timeout(3600))


def pytest_runtest_setup(item: pytest.Item) -> None:
    limit = item.config.getoption("--time-limit")
    if limit is not None and time.monotonic() - item.config.stash[STARTED] > limit:
        pytest.skip(f"the time limit of {limit:g} s was reached")


@pytest.fixture(scope="session")
def device() -> str:
    """Where to measure: cuda where there is a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def full(device: str, pytestconfig: pytest.Config) -> bool:
    """Whether everything is measured: on a GPU, or with --full."""
    return device == "cuda" or pytestconfig.getoption("--full")


@pytest.fixture(scope="session")
def once() -> Once:
    """What races share."""
    return Once()


@pytest.fixture(scope="session")
def encoders(once: Once, device: str, pytestconfig: pytest.Config) -> Encoders:
    """Models that encoder races share."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return Encoders(once, device, dtype, pytestconfig.getoption("--tome"))


@pytest.fixture(scope="session", autouse=True)
def compiled() -> Iterator[None]:
    """What is called compiled is."""
    with every_compilation_counts():
        yield


Cut = Callable[[str], None]


@pytest.fixture
def cut(full: bool, pytestconfig: pytest.Config) -> Cut:
    """Leaves a race to a full run: a quick one skips the test here, and says so in a row of this case."""

    def skip(case: str) -> None:
        if not full:
            pytestconfig.stash[RESULTS].add({"case": case, "contestant": EVERYONE, "skipped": CUT})
            pytest.skip(CUT)

    return skip


RunRace = Callable[..., Race]


@pytest.fixture
def race(benchmark: Any, request: pytest.FixtureRequest, device: str, full: bool) -> RunRace:
    """run(case, steps, ours, baseline, ...): time `steps`, {name: callable}, and record them.

    pytest-benchmark times `ours`; the others run around it in every round. Speed-ups are over `baseline`. graphs: who
    runs as a CUDA graph on a GPU; all by default. skipped: who cannot run here, and why. further: who runs in a full
    run only. warm_up: calls on a GPU before the first round. facts: what the reader of a row should know, or a dict by
    contestant.
    """

    def run(
        case: str,
        steps: dict[str, Step],
        ours: str,
        baseline: str,
        rounds: int = 15,
        graphs: set[str] | None = None,
        skipped: dict[str, str] | None = None,
        further: Collection[str] = (),
        warm_up: int = WARM_UP,
        **facts: Any,
    ) -> Race:
        cut = () if full else further
        result = Race(skipped=dict.fromkeys(cut, CUT) | (skipped or {}))
        for name, step in steps.items():
            if name not in cut:
                result.add(name, step, device, graphs is None or name in graphs, warm_up)
        if ours in result.skipped:
            pytest.fail(f"{ours}: {result.skipped[ours]}")
        order = deque(result.contestants)  # of the round under way

        def before() -> None:
            order.rotate(-1)  # another one begins, since one may leave the next a worse cache
            for name in list(order)[: order.index(ours)]:
                result.run(name)

        def after() -> None:
            for name in list(order)[order.index(ours) + 1 :]:
                result.run(name)

        rounds = request.config.getoption("--rounds") or rounds
        benchmark.pedantic(lambda: result.run(ours), setup=before, teardown=after, rounds=rounds)
        rows = []
        for name, seconds in result.seconds.items():
            own = {
                key: value[name] if isinstance(value, dict) else value
                for key, value in facts.items()
                if not isinstance(value, dict) or name in value
            }
            rows.append(_row(result, case, name, baseline, seconds) | own)
        rows += [{"case": case, "contestant": name, "skipped": why} for name, why in result.skipped.items()]
        request.config.stash[RESULTS].add(*rows)
        benchmark.extra_info["race"] = rows
        return result

    return run


def _row(result: Race, case: str, name: str, baseline: str, seconds: list[float]) -> Row:
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    row = {
        "case": case,
        "contestant": name,
        "seconds": middle,
        "quartiles": [low, high],
        "rounds": len(seconds),
        "times": seconds,
        "peak_bytes": result.contestants[name].peak_bytes,
    }
    if baseline in result.seconds and len(seconds) > 1:
        low, middle, high = result.ratio(baseline, name)
        row |= {"baseline": baseline, "speedup": middle, "speedup_quartiles": [low, high]}
    return row


def _describe(row: Row) -> str:
    """A contestant's line in the summary, after its name."""
    if "skipped" in row:
        return f" skipped: {row['skipped']}"
    line = f"{row['seconds'] * 1e3:10.3f} ms"
    if "speedup" in row:
        low, high = row["speedup_quartiles"]
        line += f"   x {row['speedup']:.3f} ({low:.3f} to {high:.3f})"
    if "flop_ratio" in row:
        line += f"   FLOPs: x {row['flop_ratio']:.3f}"
    if "cosine_to_first" in row:
        line += f"   cosine {row['cosine_to_first']:.4f}"
    if "same_top1" in row:
        line += f"   logits within {row['max_logit_difference']:.3g}, top-1 {row['same_top1']:.0%} the same"
    if "clips" in row:
        line += f"   {row['clips'] / row['seconds']:,.1f} clips/s"
    if "wait_share" in row:
        line += f"   waits {row['wait_share']:.1%} of the time"
    if "bytes" in row:
        line += f"   {row['bytes'] / row['seconds'] * 1e-9:,.0f} GB/s"
    if "macs" in row:
        line += f"   {2 * row['macs'] / row['seconds'] * 1e-12:,.2f} TFLOP/s"
    if "activation_bytes" in row:
        line += f"   saves {row['activation_bytes'] / 2**20:,.0f} MiB"
    if row["peak_bytes"] is not None:
        line += f"   {row['peak_bytes'] / 2**20:,.0f} MiB"
    return line


def audit_lines(rows: list[Row]) -> list[str]:
    """A line per audited row: GFLOPs and parameters, the paper's, the difference, and the K that would close it."""
    lines = [f"{'':<38}{'GFLOPs':>9}{'paper':>9}{'':>9}{'M params':>10}{'paper':>8}{'':>8}{'tunable':>9}{'paper':>7}"]
    for row in rows:
        paper, delta = row["paper"], row["delta_percent"]
        line = f"{row['audit']}, {row['row']:<28}"[:38].ljust(38)
        line += f"{row['gflops']:9.1f}{_number(paper['gflops'], 9)}{_percent(delta['gflops'], 9)}"
        line += f"{row['parameters'] * 1e-6:10.2f}{_number(paper['params'], 8)}{_percent(delta['params'], 8)}"
        line += f"{row['tunable'] * 1e-6:9.2f}{_number(paper['tunable'], 7)}"
        if "entities_asked_for" in row:
            line += f"   K = {row['entities']}; the paper's GFLOPs ask for {row['entities_asked_for']}"
        lines.append(line)
    return lines


def _number(value: float | None, width: int) -> str:
    return f"{'-' if value is None else f'{value:g}':>{width}}"


def _percent(value: float | None, width: int) -> str:
    return f"{'' if value is None else f'{value:+.1f} %':>{width}}"


def cut_line(rows: list[Row]) -> str | None:
    """What a quick run left out, by name; None when it was nothing."""
    names = [row["case"] if row["contestant"] == EVERYONE else f"{row['contestant']} ({row['case']})" for row in rows]
    return f"cut: {'; '.join(names)}; --full runs them" if names else None


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """How long a run took that came to its end stands in its last row."""
    results = session.config.stash[RESULTS]
    if results.rows and exitstatus == pytest.ExitCode.OK:
        seconds = round(time.monotonic() - session.config.stash[STARTED], 3)
        results.add({"whole_run": seconds, "full": session.config.getoption("--full")})


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    measured, skipped = config.stash[RESULTS].rows, terminalreporter.stats.get("skipped", [])
    if not measured and not skipped:
        return
    audited = [row for row in measured if "audit" in row]
    if audited:
        terminalreporter.section("audit: GFLOPs are 10^9 MACs of all views, counted alike by every counter")
        for line in audit_lines(audited):
            terminalreporter.write_line(line)
    rows = [row for row in measured if "case" in row]
    terminalreporter.section("races: medians, and speed-ups by round (quartiles)")
    case = None
    for row in rows:
        if row.get("skipped") == CUT:
            continue
        if row["case"] != case:
            case = row["case"]
            terminalreporter.write_line(f"\n{case}")
        terminalreporter.write_line(f"    {row['contestant']:<34}{_describe(row)}")
    absent = [(report.nodeid.rpartition("::")[2], report.longrepr[2].removeprefix("Skipped: ")) for report in skipped]
    if others := [(name, reason) for name, reason in absent if reason != CUT]:
        terminalreporter.write_line("\nnot measured")
        for name, reason in others:
            terminalreporter.write_line(f"    {name:<70} skipped: {reason}")
    if left := cut_line([row for row in rows if row.get("skipped") == CUT]):
        terminalreporter.write_line(f"\n{left}")
    if measured and (path := config.getoption("--results")):
        terminalreporter.write_line(f"\nwritten to {path}")
