"""What a result says of where it was measured."""

import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from alt_fast.measure.provenance import hash_code, provenance


@pytest.mark.parametrize(("module", "beside"), [("methods_of_mine", "helper.py"), ("package_of_mine.a", "b/helper.py")])
def test_code_of_others_is_what_stands_beside_it_too(
    module: str, beside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = module.partition(".")[0]
    path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
    helper = path.parent / beside
    helper.parent.mkdir(parents=True, exist_ok=True)
    helper.write_text("SCALE = 1\n")
    path.write_text("")
    if top != module:
        (tmp_path / top / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    import_module(module)
    before = hash_code([module])
    assert hash_code([module]) == before != hash_code()
    helper.write_text("SCALE = 2\n")
    assert hash_code([module]) != before


def test_a_package_without_an_init_is_hashed_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the folder that a command was started in."""
    path = tmp_path / "lonely" / "method.py"
    path.parent.mkdir()
    path.write_text("SCALE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    import_module("lonely.method")
    before = hash_code(["lonely.method"])
    (elsewhere / "other.py").write_text("")
    assert hash_code(["lonely.method"]) == before
    path.write_text("SCALE = 2\n")
    assert hash_code(["lonely.method"]) != before


def test_the_commit_is_that_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout that moves on while something is measured does not change what is said of it."""

    def moved_on(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, stdout="another", stderr="")

    monkeypatch.setattr(subprocess, "run", moved_on)
    found = provenance()
    assert found["commit"] not in (None, "another")
    assert isinstance(found["uncommitted_changes"], bool)
