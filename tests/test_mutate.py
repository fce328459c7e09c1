"""Every mutation can be made, and the runner tells those that are noticed from those that are not."""

import re
from pathlib import Path

import pytest

from tests.mutate import MUTATIONS, ROOT, Mutation, MutationError, main, mutated, run


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.path}: {mutation.text.strip()}")
def test_every_mutation_applies_and_names_tests_that_exist(mutation: Mutation) -> None:
    text = mutated(ROOT, mutation)
    assert text != (ROOT / mutation.path).read_text()
    if mutation.path.endswith(".py"):
        compile(text, mutation.path, "exec")
    for test in mutation.tests.split():
        file, _, function = test.partition("::")
        assert re.search(rf"^def {function or 'test_.*'}\(", (ROOT / file).read_text(), re.MULTILINE)


def test_there_are_as_many_as_promised() -> None:
    assert len(set(MUTATIONS)) == len(MUTATIONS) >= 40


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # its tests need none
    for folder in (tmp_path / "alt_fast", tmp_path / "tests"):
        folder.mkdir()
        (folder / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "alt_fast" / "small.py").write_text("ONE = 1\nTWO = 2\n# 2\n")
    (tmp_path / "tests" / "test_small.py").write_text(
        "from alt_fast.small import ONE\n\n\ndef test_one() -> None:\n    assert ONE == 1\n"
    )
    return tmp_path


def test_survivors_are_told_from_what_is_noticed(tree: Path) -> None:
    noticed = Mutation("alt_fast/small.py", "ONE = 1", "ONE = 3", "tests/test_small.py")
    survivor = Mutation("alt_fast/small.py", "TWO = 2", "TWO = 3", "tests/test_small.py::test_one")
    before = (tree / "alt_fast" / "small.py").read_text()
    said: list[str] = []
    assert run(tree, [noticed, survivor], 2, said.append) == [survivor]
    assert said == [
        "noticed  alt_fast/small.py: ONE = 1 -> ONE = 3",
        "SURVIVED alt_fast/small.py: TWO = 2 -> TWO = 3",
    ]
    assert (tree / "alt_fast" / "small.py").read_text() == before


def test_files_that_are_not_copied_say_nothing(tree: Path) -> None:
    """A test that reads one fails in every copy, whatever is broken there."""
    (tree / "notes.md").write_text("")
    (tree / "tests" / "test_small.py").write_text(
        "from pathlib import Path\n\n\ndef test_one() -> None:\n    assert Path('notes.md').exists()\n"
    )
    mutation = Mutation("alt_fast/small.py", "ONE = 1", "ONE = 3", "tests/test_small.py")
    with pytest.raises(MutationError, match="tests fail without any mutation"):
        run(tree, [mutation], 1, lambda line: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zero", "nonesuch"], "no mutation has the word 'nonesuch' in its file, line or tests"),
        (["zero", "--jobs", "0"], "--jobs must be >= 1, got 0"),
    ],
)
def test_bad_requests(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mutation", "message"),
    [
        (Mutation("alt_fast/small.py", "2", "3", "tests/test_small.py"), "has this 2 times, not once: '2'"),
        (Mutation("alt_fast/small.py", "THREE", "", "tests/test_small.py"), "has this 0 times"),
        (Mutation("alt_fast/small.py", "ONE = 1", "ONE =", "tests/test_small.py"), "status 2 of pytest"),
        (Mutation("alt_fast/small.py", "ONE = 1", "ONE = 3", "tests/test_none.py"), "status 4 of pytest"),
    ],
)
def test_what_says_nothing_is_refused(tree: Path, mutation: Mutation, message: str) -> None:
    with pytest.raises(MutationError, match=message):
        run(tree, [mutation], 1, lambda line: None)


def test_tests_that_fail_anyway_are_refused(tree: Path) -> None:
    (tree / "alt_fast" / "small.py").write_text("ONE = 2\n")
    mutation = Mutation("alt_fast/small.py", "ONE = 2", "ONE = 3", "tests/test_small.py")
    with pytest.raises(MutationError, match="tests fail without any mutation: pytest tests/test_small.py"):
        run(tree, [mutation], 1, lambda line: None)
