"""Every shipped launch configuration compiles for every target, without spills and within shared memory."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.kernel_only
PARTS = ["match", "merge", "attention", "align"]


def resources(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "alt_fast_kernels.resources", *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("kernel", PARTS)
def test_no_kernel_spills_on_any_target(kernel: str) -> None:
    found = resources("--kernel", kernel)
    assert found.returncode == 0, found.stdout + found.stderr
    for target in ("sm_80", "sm_90", "sm_100", "gfx942"):
        assert f"| {target} | {kernel}: " in found.stdout


def test_a_kernel_that_does_not_fit_fails_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from alt_fast_kernels import resources; resources.SHARED_LIMIT['sm_90'] = 100;"
        "import sys; sys.exit(resources.main(['--target', 'sm_90', '--kernel', 'match', '--workers', '1']))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert found.returncode == 1, found.stderr
    assert "does not fit" in found.stdout


def test_says_when_it_cannot_compile() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "alt_fast_kernels.resources"],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert found.returncode == 2
    assert "unset TRITON_INTERPRET" in found.stderr
