"""The package as a user has it: installed as a wheel or in place, with and without extras, used from elsewhere."""

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

import alt_fast
from alt_fast.__main__ import COMMANDS
from alt_fast.cli import EXTRAS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLEAN = {"PATH": "/usr/bin:/bin"}
"""An environment without this repository on the path."""

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
"""Threads only make small models slow where others compute."""


def normalized(name: str) -> str:
    """A requirement, as "Pillow >= 10", or an imported module, to the name that packages go by."""
    return re.split(r"[\[<>=~!; ]", name)[0].lower().replace("_", "-")


def test_public_names_load_on_first_use() -> None:
    for name in alt_fast.__all__:
        assert getattr(alt_fast, name) is not None
        assert name in dir(alt_fast)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        alt_fast.nonsense  # type: ignore[attr-defined]  # noqa: B018


DECLARES = "library = torch.library.Library('torchvision', 'DEF')\nlibrary.define('nms(Tensor x) -> Tensor')\n"
ASKS = "torch.library.register_fake('torchvision::nms')(lambda x: x)\n"
"""What torchvision's import does where its operators load, and after that in any case."""


def import_torchvision(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Import a torchvision of this code behind alt_fast, and print how often its code ran."""
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("import torch\ntorch.runs = getattr(torch, 'runs', 0) + 1\n" + code)
    command = [sys.executable, "-c", "import alt_fast, torchvision, torch; print(torch.runs)"]
    env = {**ONE_THREAD, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)


def test_torchvision_imports_whether_or_not_its_operators_load(tmp_path: Path) -> None:
    import torchvision.transforms  # dies beside a CPU build of torch unless alt_fast came first

    assert torchvision.__version__
    for name, code, runs in (("load", DECLARES + ASKS, "1"), ("missing", ASKS, "2")):
        (tmp_path / name).mkdir()
        done = import_torchvision(tmp_path / name, code)
        assert done.stdout.strip() == runs, done.stderr


def test_torchvision_that_fails_otherwise_says_so(tmp_path: Path) -> None:
    done = import_torchvision(tmp_path, DECLARES + "raise RuntimeError('of its own')\n")
    assert done.returncode != 0
    assert done.stderr.endswith("RuntimeError: of its own\n")


def test_constraints_pin_every_dependency() -> None:
    extras = PROJECT["optional-dependencies"].values()
    wanted = {normalized(name) for names in (PROJECT["dependencies"], *extras) for name in names}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [normalized(line) for line in lines if "==" in line]
    assert wanted - {"alt-fast"} <= set(pinned)
    assert len(pinned) == len(set(pinned))


def test_setup_maps_packages_and_nothing_else() -> None:
    code = (ROOT / "setup.py").read_text()
    assert set(re.findall(r"^\s+(\w+)=", code, re.MULTILINE)) == {"packages", "package_dir"}


def test_commands_name_the_extra_that_installs_what_is_missing() -> None:
    packages = {"open_clip": "open-clip-torch", "nvidia": "nvidia-dali-cuda120"}
    extras = PROJECT["optional-dependencies"]
    for module, extra in EXTRAS.items():
        assert packages.get(module, normalized(module)) in map(normalized, extras[extra]), module
    known = {packages.get(module, normalized(module)) for module in EXTRAS}
    brought_by_timm = {"pillow", "pyyaml", "safetensors", "tqdm"}
    users = {normalized(name) for extra, names in extras.items() if extra != "dev" for name in names}
    assert users - {"alt-fast"} - brought_by_timm == known


def test_python_versions_are_those_declared() -> None:
    oldest = tuple(map(int, re.findall(r"\d+", PROJECT["requires-python"])))
    versions = [name.rsplit(" ", 1)[1] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert oldest <= sys.version_info
    assert ".".join(map(str, oldest)) in versions


HELP = """
import contextlib, io, sys
import alt_fast
from alt_fast.__main__ import COMMANDS, main
from alt_fast.data.__main__ import COMMANDS as DATA

assert "torch" not in sys.modules, "import alt_fast"
for words in [[], *([name] for name in COMMANDS), *(["data", name] for name in DATA)]:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    assert shown.getvalue().startswith(" ".join(["usage: alt-fast", *words])), (words, shown.getvalue())
    assert "torch" not in sys.modules, words
    if not words:
        print(shown.getvalue())
"""


def test_help_lists_commands_and_loads_no_torch() -> None:
    shown = subprocess.run([sys.executable, "-c", HELP], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    listed = re.findall(r"^  (\w+)  +\w", shown.partition("commands:")[2], re.MULTILINE)
    assert listed == list(COMMANDS)
    files = {path.stem for path in (ROOT / "alt_fast").glob("*.py")}
    folders = {path.parent.name for path in (ROOT / "alt_fast").glob("*/__main__.py")}
    assert set(COMMANDS) <= files | folders
    assert folders <= set(COMMANDS)


WITHOUT_EXTRAS = """
import contextlib, io, json, os, sys, traceback

class Hiding:  # a finder that does not find packages of extras
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)

extras, cases = json.loads(sys.argv[1]), json.loads(sys.argv[2])
hidden = {package for packages in extras.values() for package in packages}
hidden |= {"clip", "fvcore", "hypothesis", "matplotlib", "onnx", "onnxruntime", "onnxscript", "xformers"}  # for tests
sys.meta_path[:] = map(Hiding, sys.meta_path)

import alt_fast
import timm
import torch
from PIL import Image
from alt_fast.__main__ import main

def outcome(argv):
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main(argv)
        except BaseException:
            status = traceback.format_exc()
    return [status, shown.getvalue()]

found = {}
for extra in extras:  # as if it were installed; in a process of its own, forked before torch makes threads
    read, write = os.pipe()
    if not os.fork():
        hidden -= {*extras[extra], *(extras["video"] if extra == "train" else ())}
        report = json.dumps([outcome(argv) if needs == extra else None for argv, needs in cases])
        with open(write, "w") as pipe:
            pipe.write(report)
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        found[extra] = json.load(pipe)
found[""] = [outcome(argv) for argv, _ in cases]

model = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=2)
alt_fast.apply_patch(model, r=8, trace_source=True)
assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 3)
assert alt_fast.merge_trace(model).size.shape == (1, 197 - 16)
assert alt_fast.visualize.regions(Image.new("RGB", (99, 99)), model).width
out, key = alt_fast.ToMeAttention(64, num_heads=2)(torch.zeros(1, 5, 64))
assert out.shape == (1, 5, 64) and key.shape == (1, 5, 2, 32)
print(json.dumps(found))
"""

CASES = {  # command lines, and the extra that each needs
    "train --config kinetics400_b16 --data.train none.csv --out run": "train",
    "evaluate --checkpoint none": "video",
    "classify a.mp4 --checkpoint none": "video",
    "live a.mp4 --checkpoint none": "video",
    "explain a.mp4 --checkpoint none --out a.html": "video",
    "extract --checkpoint none --list none.csv --out out": "video",
    "export --checkpoint none --out out": "video",
    "corpus build --labels running --out corpus.json": "corpus",
    "corpus stats motion_shapes": "",
    "data check none.csv": "video",
    "data browse none.csv --out a.png": "train",
    "data shard none.csv --out out": "",
    "protocols zero-shot --checkpoint none --list none.csv": "video",
    "protocols few-shot --list none.csv --out out": "",
    "ablations 5 --show --out out": "train",
    "watch none": "",
    "ls configs hosts": "",
    "ls backbones": "video",
    "cp motion_shapes mine.yaml": "",
}


def test_base_install_patches_models_and_commands_say_which_extra_they_need(tmp_path: Path) -> None:
    extras = {extra: [m for m, e in EXTRAS.items() if e == extra] for extra in ("video", "train", "corpus")}
    extras["corpus"] += ["scipy", "sklearn"]  # sentence-transformers brings them
    cases = [(line.split(), extra) for line, extra in CASES.items()]
    command = [sys.executable, "-c", WITHOUT_EXTRAS, json.dumps(extras), json.dumps(cases)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=tmp_path, timeout=300, env=ONE_THREAD
    )
    found = json.loads(done.stdout)
    for number, (line, extra) in enumerate(CASES.items()):
        status, error = found[""][number]
        if extra:
            assert status == 1, f"{line}: {status}"
            names = "video|train" if extra == "train" else extra  # train brings video
            assert re.fullmatch(rf"error: this needs \w+: pip install 'alt-fast\[({names})\]'\n", error), line
            status, error = found[extra][number]
        assert isinstance(status, int), f"{line}: {status}"
        assert "pip install" not in error, line


def copy_of_the_repository(folder: Path) -> Path:
    """Clone the last commit, with the changes since."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    git = ["git", "-C", str(ROOT)]
    for name in subprocess.check_output([*git, "ls-files", "-dom", "--exclude-standard"], text=True).splitlines():
        if (ROOT / name).is_file():  # among what git does not know, links to folders may be
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
        else:
            (folder / name).unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as it is now, without what is ignored."""
    return copy_of_the_repository(tmp_path_factory.mktemp("package") / "source")


def install(source: Path, folder: Path, *options: str) -> tuple[Path, Path]:
    """Install into a new environment that borrows this one's dependencies, so that nothing is downloaded.

    Returns its bin and site-packages.
    """
    venv.create(folder, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    command = [*pip, "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", *options, str(source)]
    subprocess.run(command, check=True)
    return folder / "bin", site


LOCATE = """
import importlib.util
for name in ("alt_fast", "alt_fast_kernels"):
    print(importlib.util.find_spec(name).origin)
"""


def test_editable_install_finds_both_packages_in_the_source(source: Path, tmp_path: Path) -> None:
    where, _ = install(source, tmp_path / "venv", "-e")
    command = [str(where / "python"), "-c", LOCATE]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, env=CLEAN).stdout
    assert found.split() == [
        str(source / "alt_fast/__init__.py"),
        str(source / "kernels/alt_fast_kernels/__init__.py"),
    ]


def test_wheel_holds_every_file_and_brings_the_command(source: Path, tmp_path: Path) -> None:
    where, site = install(source, tmp_path / "venv")
    for folder in (source, source / "kernels"):
        for package in ("alt_fast", "alt_fast_kernels"):
            files = [path.relative_to(folder) for path in (folder / package).rglob("*") if path.is_file()]
            assert [str(file) for file in files if not (site / file).exists()] == []
    command = [str(where / "alt-fast"), "ls", "configs"]
    out = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, env=CLEAN).stdout
    assert all(f"  {config.stem} " in out for config in (ROOT / "alt_fast/training/configs").glob("*.yaml"))
    command = [str(where / "python"), "-c", LOCATE]
    found = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, env=CLEAN).stdout
    assert found.split() == [str(site / "alt_fast/__init__.py"), str(site / "alt_fast_kernels/__init__.py")]
