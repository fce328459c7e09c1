"""The package as a user has it: installed as a wheel or in place, used from outside the repository."""

import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

import alt_fast

ROOT = Path(__file__).parent.parent


def test_public_names_load_on_first_use() -> None:
    for name in alt_fast.__all__:
        assert getattr(alt_fast, name) is not None
        assert name in dir(alt_fast)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        alt_fast.nonsense  # noqa: B018


def test_torchvision_imports_whether_or_not_its_operators_load() -> None:
    import torchvision.transforms  # dies beside a CPU build of torch unless alt_fast came first

    from alt_fast._torchvision import _declare_missing_schemas

    assert torchvision.__version__
    assert _declare_missing_schemas() is None  # nothing is declared twice


def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.split(r"[\[<>=~! ]", requirement)[0].lower() for requirement in wanted}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert names - {"alt-fast"} <= pinned


def test_setup_maps_packages_and_nothing_else() -> None:
    code = (ROOT / "setup.py").read_text()
    assert set(re.findall(r"^\s+(\w+)=", code, re.MULTILINE)) == {"packages", "package_dir"}


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_installs_and_works_outside_the_repository(tmp_path: Path, editable: bool) -> None:
    """A new environment that borrows this one's dependencies, so that nothing is downloaded."""
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    for name in subprocess.check_output(
        ["git", "-C", str(ROOT), "ls-files", "-om", "--exclude-standard"], text=True
    ).split("\n"):
        if name and (ROOT / name).exists():  # changes not committed yet
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    venv.create(tmp_path / "venv")
    python = str(tmp_path / "venv" / "bin" / "python")
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python]
    install = [*pip, "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*install, *(["-e"] if editable else []), str(source)], check=True)
    check = """
import alt_fast, alt_fast_kernels, json, pathlib, sys
from alt_fast.train import load_corpus, parse
assert pathlib.Path(alt_fast.__file__).is_relative_to(sys.argv[1]), alt_fast.__file__
assert pathlib.Path(alt_fast_kernels.__file__).is_relative_to(sys.argv[1]), alt_fast_kernels.__file__
model = alt_fast.create_model("alt_tiny", load_corpus(parse([])))
assert parse([]).pretrain.steps and parse(["--config", "kinetics400_b16"]).optim.epochs == 30
print(model.count_parameters())
"""
    where = source if editable else site
    command = [python, "-c", check, str(where)]
    out = subprocess.run(
        command, cwd=tmp_path, check=True, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert int(out.stdout) > 0
