"""The API reference is built from the docstrings, whole and without a complaint."""

import importlib.util
import re
from pathlib import Path

import pytest

import alt_fast
import alt_fast_kernels

SCRIPT = Path(__file__).parent.parent / "docs" / "build_api.py"


def test_every_public_name_is_in_the_reference(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("build_api", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.build(tmp_path) == []
    index = (tmp_path / "index.html").read_text()
    for module in script.MODULES:
        assert f'href="{module.replace(".", "/")}.html"' in index
    for package in (alt_fast, alt_fast_kernels):
        page = (tmp_path / f"{package.__name__}.html").read_text()
        for name in set(package.__all__) - {"visualize"}:
            assert f'<section id="{name}">' in page
    assert '<section id="regions">' in (tmp_path / "alt_fast" / "visualize.html").read_text()
    assert "<strong>trace_source</strong>: keep where tokens went" in (tmp_path / "alt_fast.html").read_text()


@pytest.mark.parametrize("package", [alt_fast, alt_fast_kernels], ids=["alt_fast", "alt_fast_kernels"])
def test_public_names_say_what_they_are(package: object) -> None:
    missing = []
    for name in package.__all__:  # type: ignore[attr-defined]
        thing = getattr(package, name)
        members = {f"{name}.{key}": value for key, value in vars(thing).items()} if isinstance(thing, type) else {}
        public = {key: value for key, value in members.items() if callable(value) and "._" not in key}
        missing += [key for key, value in {name: thing, **public}.items() if not says_something(key, value)]
    assert missing == []


def says_something(name: str, thing: object) -> bool:
    """Whether it has a docstring of its own: dataclasses and named tuples without one are given their signature."""
    text = thing.__doc__ or ""
    return bool(text.strip()) and not re.match(rf"{name}\(", text)
