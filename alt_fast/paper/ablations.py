"""The paper's ablations (Tables 5, 7, 8, C3, C4): every row a training, and the tables with our scores in them."""

import json
import shlex
import signal
import statistics
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

from alt_fast.errors import RunError
from alt_fast.files import CLIP, METRICS, make_folder, read_json
from alt_fast.paper.splits import write_shots
from alt_fast.progress import Progress
from alt_fast.training.config import TrainConfig, parse

FULLY, FEW, ZERO = "fully", "2-shot", "0-shot"
COLUMNS = (FULLY, FEW, ZERO)


@dataclass(frozen=True)
class Row:
    """A row of a table: what the model is like in it, and the paper's top-1 in per cent by column.

    changes: all that its name says of the model, also where the paper's own model is so: another may not be. An `r`
    among them is one of ALT-B/16, whose own is 8; other models take the same share of their own.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    paper: tuple[float | None, float | None, float | None] = (None, None, None)


ALIGNED = {"query": "entities"}
UNMERGED = {**ALIGNED, "r": 0, "regions": False}  # without merging there are no regions
MERGED = {**ALIGNED, "r": 8}
REGIONS = {**MERGED, "regions": True}

TABLES = {
    "5": [
        Row("frame tokens as queries, r = 0 (the paper: X-CLIP)", {"query": "frame", "r": 0}, (81.7, 53.0, 72.0)),
        Row("+ Align", UNMERGED, (82.6, 57.7, 75.0)),
        Row("+ Align + ToMe", {**MERGED, "regions": False}, (82.0, 54.1, 73.3)),
        Row("+ Align + ToMe + Region", REGIONS, (82.4, 64.0, 76.7)),
    ],
    "7": [
        Row("frozen", {"tuning": "frozen"}, (81.1, None, None)),
        Row("S-adapter", {"tuning": "s"}, (81.4, None, None)),
        Row("SM-adapter", {"tuning": "sm"}, (81.5, None, None)),
        Row("STM-adapter", {"tuning": "stm"}, (82.0, None, None)),
        Row("fine-tune", {"tuning": "finetune"}, (82.4, None, None)),
    ],
    "8": [
        Row("r = 0", UNMERGED, (82.6, None, None)),
        Row("r = 4", {**REGIONS, "r": 4}, (82.4, None, None)),
        Row("r = 8", {**REGIONS, "r": 8}, (82.4, None, None)),
        Row("r = 13", {**REGIONS, "r": 13}, (81.9, None, None)),
    ],
    "C3": [
        Row("no corpus: learned queries", {"query": "learned"}, (81.6, 56.1, 66.3)),
        Row("body", {**ALIGNED, "categories": ["body"]}, (81.9, 60.4, 73.1)),
        Row("object", {**ALIGNED, "categories": ["object"]}, (82.2, 62.7, 74.8)),
        Row("scene", {**ALIGNED, "categories": ["scene"]}, (82.2, 61.9, 74.1)),
        Row("motion", {**ALIGNED, "categories": ["motion"]}, (81.8, 59.7, 72.4)),
        Row("all", {**ALIGNED, "categories": None}, (82.3, 64.0, 76.7)),
    ],
    "C4": [
        Row("neither", {"self_attention": False, "conv": False}, (81.8, 62.4, 75.6)),
        Row("self-attention", {"self_attention": True, "conv": False}, (82.2, 63.2, 76.3)),
        Row("1-D convolution", {"self_attention": False, "conv": True}, (82.1, 62.7, 76.1)),
        Row("both", {"self_attention": True, "conv": True}, (82.3, 64.0, 76.7)),
    ],
}

BASE = Row("")


@dataclass(frozen=True)
class Sweep:
    """What all runs share.

    config: of the fully supervised runs. options: the same as command-line options. few_shot: options of the second
    training, which starts from each; "{seed}" and "{data}" stand for the seed and the folder of generated videos. None:
    no such column. launch: the command that runs `-m alt_fast.train`. frames: of the runs that the few- and zero-shot
    columns are of, whatever `few_shot` says of them; 32 in the paper (section 4.4). Where they are not the
    configuration's own, what is transferred is a further run.
    """

    config: TrainConfig
    options: Sequence[str]
    few_shot: Sequence[str] | None
    launch: Sequence[str]
    out: Path
    frames: int

    def folder(self, row: Row, seed: int, stage: str = "") -> Path:
        """The run folder of a row; rows that change the same share it, whatever their tables."""
        changes = ",".join(f"{name}={_text(value)}" for name, value in self.changes(row).items())
        return self.out / f"seed{seed}" / f"{changes or 'base'}{stage}"

    @property
    def transfers(self) -> bool:
        """Whether there are few- or zero-shot columns; generated data has classes that are not trained on."""
        data = self.config.data
        return self.few_shot is not None or data.unseen is not None or data.generate is not None

    @property
    def transfer(self) -> str:
        """What the folder of a run that is transferred has behind the name of the fully supervised one."""
        return f",frames={self.frames}" if self.transfers and self.frames != self.config.model.frames else ""

    def changes(self, row: Row) -> dict[str, Any]:
        """The row's settings of the model that are not the configuration's own."""
        changes = dict(row.changes)
        if "r" in changes:
            changes["r"] = self.scale(changes["r"])
        return {name: value for name, value in changes.items() if value != getattr(self.config.model, name)}

    def scale(self, r: int) -> Any:
        """An r of ALT-B/16 as one of this model. Raises RunError when its own is none, or no int that has a share."""
        own = self.config.model.r
        if r and not own:
            raise RunError(f"a row merges tokens, and model.r is {own!r}: give the model an r of its own")
        if r in (0, 8):
            return own if r else 0
        if not isinstance(own, int):
            raise RunError(f"Table 8 varies model.r, which must be an int for it, got {own!r}")
        return r * own // 8

    def train(self, row: Row, seed: int) -> None:
        """All trainings of a row; what is done already is not done again."""
        changed = [f"--model.{name}={_text(value)}" for name, value in self.changes(row).items()]
        data = self.out / "data" / f"seed{seed}"
        generated = self.config.data.generate is not None
        own = [f"--data.root={data}", f"--data.shapes.seed={seed}"] if generated else []
        tower: list[str] = []
        if self.config.pretrain is not None:  # one CLIP for all runs of a seed: that of the first
            tower = ["--pretrain=null", f"--model.pretrained={self.folder(BASE, seed) / CLIP}"]
        options = [*self.options, *own, *changed, "--frame-only=false", f"--seed={seed}"]
        self._run([*options, *([] if row is BASE else tower)], self.folder(row, seed))
        run, frames = self.folder(row, seed, self.transfer), f"--model.frames={self.frames}"
        if self.transfer:
            self._run([*options, *tower, frames], run)
        if self.few_shot is not None:
            second = [option.replace("{seed}", str(seed)).replace("{data}", str(data)) for option in self.few_shot]
            second += [f"--templates={self.config.templates}", f"--augment.normalize={self.config.augment.normalize}"]
            if generated:
                same = asdict(self.config.model).items()
                other = ("pretrained", "frames", "tau_start")
                second += [f"--model.{name}={_text(value)}" for name, value in same if name not in other]
            if generated and row is BASE:
                write_shots(data / "few_shot.txt", data / "unseen_classes.csv", None, [2], seed, data, replace=True)
            again = self.folder(row, seed, f"{self.transfer},few-shot")
            self._run([*second, f"--start-from={run}", *changed, frames, f"--seed={seed}"], again)

    def _run(self, options: Sequence[str], run: Path) -> None:
        from alt_fast.training.run_folder import has_result  # with PyTorch, which --help does without

        if has_result(run, parse([*options])):
            return
        make_folder(run.parent)
        command = [*self.launch, "-m", "alt_fast.train", *options, f"--out={run}", "--resume"]
        try:
            with run.with_name(f"{run.name}.log").open("a") as log:
                status = call(command, log)
        except OSError as e:
            raise RunError(f"cannot start {shlex.join(command)}: {e}") from e
        if status != 0:
            raise RunError(f"status {status} of {shlex.join(command)}; see {log.name}")

    def scores(self, row: Row, seed: int) -> dict[str, float]:
        """Top-1 in per cent by column, of what has been trained and tested.

        Runs whose metrics are older than the score over all classes of the unseen list have that of the others alone.
        """
        found: dict[str, float] = {}
        for column, stage, names in (
            (FULLY, "", ["top1"]),
            (ZERO, self.transfer, ["top1_zero_shot", "top1_unseen_pairs"]),
            (FEW, f"{self.transfer},few-shot", ["top1"]),
        ):
            path = self.folder(row, seed, stage) / METRICS
            metrics = read_json(path) if path.exists() else {}
            if measured := [metrics[name] for name in names if name in metrics]:
                found[column] = 100 * measured[0]
        return found


_running: set["subprocess.Popen[bytes]"] = set()
_starting = threading.RLock()  # held until what starts is among them
_ending = threading.Event()


def call(command: Sequence[str], log: IO[str]) -> int:
    """Run a command to its end and return its status. log: where its output goes.

    Raises RunError once `ended_together` has ended the others.
    """
    with _starting:
        if _ending.is_set():
            raise RunError(f"asked to end before {shlex.join(command)}")
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _running.add(process)
    try:
        return process.wait()
    finally:
        _running.discard(process)


@contextmanager
def ended_together() -> Iterator[None]:
    """Inside, SIGTERM ends what `call` runs, and then this process: a training writes a checkpoint first."""

    def end(number: int, frame: object) -> NoReturn:
        with _starting:
            _ending.set()
            for process in [*_running]:
                process.terminate()
        raise SystemExit(128 + number)

    _ending.clear()
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def run_all(sweep: Sweep, tables: Iterable[str], seeds: Sequence[int], jobs: int) -> None:
    """Train what the tables need, `jobs` at a time: the unchanged model of every seed first. Raises RunError."""
    rows = {sweep.folder(row, 0): row for table in tables for row in TABLES[table] if sweep.changes(row)}

    failed = threading.Event()  # a pool's thread takes the next training before anybody can cancel it

    def train(row: Row, seed: int) -> None:
        if failed.is_set():
            return
        try:
            sweep.train(row, seed)
        except BaseException:
            failed.set()
            raise

    def trainings(pool: ThreadPoolExecutor) -> Iterator[None]:
        for stage in ([BASE], rows.values()):
            futures = [pool.submit(train, row, seed) for row in stage for seed in seeds]
            try:
                yield from (future.result() for future in futures)
            except BaseException:
                failed.set()
                raise
            finally:
                for future in futures:
                    future.cancel()

    with ended_together(), ThreadPoolExecutor(jobs) as pool:
        for _ in Progress(trainings(pool), "ablations", "row", len(seeds) * (1 + len(rows))):
            pass


def table_text(sweep: Sweep, table: str, seeds: Sequence[int]) -> str:
    """A Markdown table: the paper's top-1 and ours, mean and sample deviation over the seeds, in per cent."""
    rows = TABLES[table]
    scores = [[sweep.scores(row, seed) for seed in seeds] for row in rows]
    ours = [c for c in COLUMNS if any(c in score for found in scores for score in found)]
    papers = [i for i in range(len(COLUMNS)) if any(row.paper[i] is not None for row in rows)]
    head = [f"Table {table}", *(f"paper, {COLUMNS[i]}" for i in papers), *(f"ours, {column}" for column in ours)]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    for row, found in zip(rows, scores, strict=True):
        name = row.name
        if "r = " in name and (r := row.changes["r"]) and sweep.scale(r) != r:
            name += f" (here {sweep.scale(r)})"
        paper = ["-" if row.paper[i] is None else f"{row.paper[i]:.1f}" for i in papers]
        values = [[score[column] for score in found if column in score] for column in ours]
        lines.append([name, *paper, *map(spread_text, values)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread_text(values: Sequence[float]) -> str:
    """Return mean and sample deviation as a table shows them."""
    if not values:
        return "not measured"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


SHAPES_FEW_SHOT = (
    "--config few_shot_motion_shapes --data.train {data}/2-shot-seed{seed}.csv --data.test {data}/unseen.txt "
    "--data.classes {data}/unseen_classes.csv"
)
