"""Two commits measured in turn: each imports its own packages, and no worktree is left, however it ends."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks import against, compare

CONFTEST = """
import json
import alt_fast, alt_fast_kernels

def pytest_addoption(parser):
    for option in ("--results", "--rounds"):
        parser.addoption(option)

def pytest_runtest_teardown(item):
    times = [alt_fast.SECONDS, 2 * alt_fast.SECONDS, 3 * alt_fast.SECONDS]
    row = {"case": item.name, "contestant": "ours", "seconds": times[1], "quartiles": times[::2]}
    audited = {"audit": "kernels", "row": item.name, "gflops": alt_fast_kernels.GFLOPS, "parameters": 1}
    head = {"provenance": {"device": "cpu"}}
    assert item.config.getoption("--rounds") == "3"
    with open(item.config.getoption("--results"), "w") as file:
        file.write("".join(json.dumps(line) + "\\n" for line in (head, row, audited)))
"""

FILES = {
    "alt_fast/__init__.py": "SECONDS = 1.0\n",
    "kernels/alt_fast_kernels/__init__.py": "GFLOPS = 5.0\n",
    "benchmarks/conftest.py": CONFTEST,
    "benchmarks/test_speed.py": "def test_speed(benchmark):\n    benchmark.pedantic(int, rounds=1)\n",
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository laid out as this one, with one commit of FILES."""
    for name in [name for name in os.environ if "XDIST" in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # starting them takes longer than the fake benchmarks
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_benchmark.plugin")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "a tester")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "tester@example.org")
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "--quiet")
    commit(root, FILES)
    monkeypatch.setattr(compare, "ROOT", root)
    return root


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def commit(root: Path, files: dict[str, str]) -> str:
    """Add or change files; returns the commit's hash."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "a change")
    return git(root, "rev-parse", "HEAD")


def left(root: Path) -> list[str]:
    """Worktrees besides the repository itself."""
    return [line for line in git(root, "worktree", "list").splitlines() if str(root) not in line]


def test_each_commit_is_measured_with_its_own_packages(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever of them is installed; by turns, and each in its own worktree."""
    commit(repository, {"alt_fast/__init__.py": "SECONDS = 9.0\n"})
    commit(repository, {"kernels/alt_fast_kernels/__init__.py": "GFLOPS = 6.0\n"})
    assert compare.main(["--against", "HEAD~2", "--rounds", "6"]) == 1
    out = capsys.readouterr().out
    assert "+800.0 %   test_speed | ours" in out
    assert "+20.0 %   kernels | test_speed (gflops)" in out
    assert [line[:3] for line in out.splitlines() if ", run " in line] == ["old", "new", "new", "old"]
    assert left(repository) == []


def test_the_same_commit_has_not_changed(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also says what is measured: HEAD, not the files that lie there."""
    (repository / "alt_fast/__init__.py").write_text("SECONDS = 9.0\n")
    assert compare.main(["--against", "HEAD", "--rounds", "3", "-k", "speed", "--", "--durations", "1"]) == 0
    printed = capsys.readouterr()
    assert "0 worse, 0 better" in printed.out
    assert "not committed are not measured: alt_fast/__init__.py" in printed.err


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ({}, ["--against", "v7"], "takes a commit of .*repository, got 'v7'"),
        ({}, ["--against", "HEAD", "-k", "nothing"], "old-.* has no benchmark of -k 'nothing' that runs here"),
        ({"benchmarks/conftest.py": ""}, ["--against", "HEAD~1"], "new-.* has no benchmarks that take --results and "),
        ({"benchmarks/test_speed.py": "1 / 0"}, ["--against", "HEAD~1"], "new-.*: pytest ended with 2\n.*ZeroDivision"),
    ],
)
def test_what_cannot_be_measured_is_named(
    files: dict[str, str], arguments: list[str], message: str, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if files:
        commit(repository, files)
    assert compare.main([*arguments, "--rounds", "3"]) == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert left(repository) == []


def test_a_commit_that_would_measure_the_installed_packages_is_refused(repository: Path) -> None:
    git(repository, "rm", "-r", "--quiet", "kernels")
    commit(repository, {})
    message = "new-HEAD would measure what is not its own: .*kernels"
    with (
        against.worktrees(repository, {"new": "HEAD"}) as (tree,),
        pytest.raises(against.AgainstError, match=message),
    ):
        against.check_tree(tree)


def test_a_commit_in_which_python_does_not_run_is_named(repository: Path) -> None:
    broken = "import os\nos.write(2, b'no Python here')\nos._exit(3)\n"
    commit(repository, {"sitecustomize.py": broken})
    message = "new-HEAD: Python ended with 3\nno Python here"
    with (
        against.worktrees(repository, {"new": "HEAD"}) as (tree,),
        pytest.raises(against.AgainstError, match=message),
    ):
        against.check_tree(tree)


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (against.AgainstError("no disk"), 2)])
def test_no_worktree_is_left_of_what_was_stopped(
    error: BaseException, status: int, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = []

    def measure(tree: Path, *arguments: object) -> None:
        trees.append(tree)
        assert len(left(repository)) == 2
        raise error

    monkeypatch.setattr(against, "measure", measure)
    assert compare.main(["--against", "HEAD", "--rounds", "3"]) == status
    assert left(repository) == []
    assert [tree.exists() for tree in trees] == [False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "give two result files, or --against COMMIT; got 1 files"),
        (["a", "b", "--full"], "go with --against"),
        (["a", "b", "--", "-x"], "go with --against"),
        (["a", "--against", "HEAD"], "it reads no files, got a"),
        (["--against", "HEAD", "--rounds", "10"], "--rounds must be a multiple of 3, got 10"),
        (["--against", "HEAD", "--rounds", "0"], "--rounds must be a multiple of 3, got 0"),
    ],
)
def test_arguments_that_do_not_belong_together_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        compare.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
