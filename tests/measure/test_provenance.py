"""What a result says of where it was measured."""

import subprocess
from typing import Any

import pytest

from alt_fast.measure.provenance import provenance


def test_the_commit_is_that_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout that moves on while something is measured does not change what is said of it."""

    def moved_on(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, stdout="another", stderr="")

    monkeypatch.setattr(subprocess, "run", moved_on)
    found = provenance()
    assert found["commit"] not in (None, "another")
    assert isinstance(found["uncommitted_changes"], bool)
