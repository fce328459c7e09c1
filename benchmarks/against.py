"""Two commits measured in turn on one machine, each by its own benchmarks in a worktree of its own."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROUNDS = 3
"""Of one run: few, so that the commits take turns often."""

NO_TESTS = 5  # pytest's exit status when nothing was selected

LOCATE = """
from importlib.util import find_spec
for name in ("alt_fast", "alt_fast_kernels"):
    print(getattr(find_spec(name), "origin", None))
"""


class AgainstError(Exception):
    """Two commits cannot be compared; says which one, and why."""


@dataclass(frozen=True)
class Selection:
    """What is measured. expression: pytest's -k. full: --full, where a commit knows it. options: more of pytest's."""

    expression: str | None = None
    full: bool = False
    options: Sequence[str] = ()

    def arguments(self, tree: Path) -> list[str]:
        """For pytest in `tree`."""
        full = ["--full"] if self.full and "--full" in _options(tree) else []
        return [*self.options, *full, *(["-k", self.expression] if self.expression is not None else [])]


def commit_of(repository: Path, name: str) -> str:
    """The hash of a commit. Raises AgainstError where there is none of this name."""
    found = _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if found.returncode:
        raise AgainstError(f"--against takes a commit of {repository}, got {name!r}")
    return found.stdout.strip()


def uncommitted(repository: Path) -> list[str]:
    """Tracked files whose changes are in no commit."""
    return [line[3:] for line in _git(repository, "status", "--porcelain", "-uno").stdout.splitlines()]


@contextmanager
def worktrees(repository: Path, commits: Mapping[str, str]) -> Iterator[list[Path]]:
    """A temporary worktree of each commit, {name: hash}, gone after the block however it ends. Raises AgainstError."""
    with tempfile.TemporaryDirectory(prefix="alt-fast-against-") as folder:
        trees = [Path(folder).resolve() / f"{name}-{commit[:9]}" for name, commit in commits.items()]
        try:
            for tree, commit in zip(trees, commits.values(), strict=True):
                made = _git(repository, "worktree", "add", "--detach", str(tree), commit)
                if made.returncode:
                    raise AgainstError(f"git makes no worktree of {commit}: {made.stderr.strip()}")
            yield trees
        finally:
            for tree in trees:
                _git(repository, "worktree", "remove", "--force", str(tree))


def check_tree(tree: Path) -> None:
    """Raise AgainstError unless `tree` has benchmarks that can be compared, of the packages beside them."""
    if missing := {"--results", "--rounds"} - _options(tree):
        raise AgainstError(f"{tree.name} has no benchmarks that take {' and '.join(sorted(missing))}")
    located = _python(tree, "-c", LOCATE)
    if located.returncode:
        raise AgainstError(f"{tree.name}: Python ended with {located.returncode}\n{_tail(located)}")
    if strangers := [path for path in located.stdout.splitlines() if not Path(path).is_relative_to(tree)]:
        raise AgainstError(f"{tree.name} would measure what is not its own: {', '.join(strangers)}")


def measure(tree: Path, selection: Selection, results: Path) -> None:
    """Run the benchmarks of `tree` into a result file. Raises AgainstError unless they pass and measure something."""
    command = ["-m", "pytest", "benchmarks/", "--benchmark-only", "-q", *selection.arguments(tree)]
    done = _python(tree, *command, "--rounds", str(ROUNDS), "--results", str(results))
    if done.returncode == NO_TESTS or (done.returncode == 0 and not results.exists()):
        chosen = "" if selection.expression is None else f" of -k {selection.expression!r}"
        raise AgainstError(f"{tree.name} has no benchmark{chosen} that runs here")
    if done.returncode:
        raise AgainstError(f"{tree.name}: pytest ended with {done.returncode}\n{_tail(done)}")


def race(
    repository: Path, commit: str, selection: Selection, rounds: int, folder: Path
) -> tuple[list[Path], list[Path]]:
    """Measure a commit and HEAD in turn: old, new, new, old and so on. Returns their result files, made in `folder`.

    rounds: of every contestant in each commit, a multiple of `ROUNDS`. Raises AgainstError.
    """
    commits = {"old": commit_of(repository, commit), "new": commit_of(repository, "HEAD")}
    files: tuple[list[Path], list[Path]] = ([], [])
    turns = rounds // ROUNDS
    with worktrees(repository, commits) as trees:
        for tree in trees:
            check_tree(tree)
        for turn in range(turns):
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                started = time.monotonic()
                files[side].append(folder / f"{trees[side].name}-{turn}.jsonl")
                measure(trees[side], selection, files[side][-1])
                print(f"{trees[side].name}, run {turn + 1} of {turns}: {time.monotonic() - started:.0f} s", flush=True)
    return files


def _options(tree: Path) -> set[str]:
    """Which of the options that matter here the benchmarks of `tree` take."""
    conftest = tree / "benchmarks/conftest.py"
    text = conftest.read_text() if conftest.exists() else ""
    return {option for option in ("--results", "--rounds", "--full") if f'"{option}"' in text}


def _python(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in `tree`, whose packages come before those that are installed."""
    paths = [str(tree), str(tree / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True)


def _git(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=repository, capture_output=True, text=True)


def _tail(done: subprocess.CompletedProcess[str]) -> str:
    return "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
