"""Public code of methods from a checkout, here one with what it is called by: which models it is given."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from alt_fast.errors import ArgumentError
from alt_fast.methods.public import public_method
from tests.tome.test_patch import build

FILES = {
    "tome": ("tome/patch.py", "def timm(model):\n    model.r = 0\n"),
    "pitome": ("algo/pitome/patch/timm.py", "PiToMeBlock = PiToMeAttention = None\n"),
    "tofu": ("algo/tofu/patch/timm.py", "ToFuBlock = ToFuAttention = None\n"),
}


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A folder with code of all methods. What is imported from it is forgotten."""
    for name, code in FILES.values():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("tome", "algo"):
            del sys.modules[name]


def test_patches_timms_vision_transformer(checkout: Path) -> None:
    model: Any = build("timm")
    assert public_method("tome", checkout)(model, 3) is model
    assert model.r == 3


@pytest.mark.parametrize(("name", "r"), [("tome", 0.25), ("tofu", 0.25), ("pitome", [3, 2]), ("tofu", [3, 2])])
def test_an_r_that_the_code_would_not_merge_by_is_refused(name: str, r: Any, checkout: Path) -> None:
    with pytest.raises(ArgumentError, match=f"the public code of {name} removes a number of tokens, got r = "):
        public_method(name, checkout)(build("timm"), r)


def foreign_attention() -> nn.Module:
    model: Any = build("timm")
    model.blocks[1].attn = nn.Identity()
    return model


def foreign_block() -> nn.Module:
    model: Any = build("timm")
    model.blocks[0] = nn.Identity()
    return model


def layer_scale() -> nn.Module:
    """DINOv2's."""
    return build("timm-dinov2")


def query_norms() -> nn.Module:
    model: Any = build("timm")
    model.blocks[1].attn.q_norm = nn.LayerNorm(16)
    return model


LEFT_OUT = {"LayerScale": layer_scale, "norms of queries and keys": query_norms}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_a_model_with_parts_that_the_code_leaves_out_is_refused(what: str, checkout: Path) -> None:
    with pytest.raises(ArgumentError, match=f"the public code of tome leaves out {what}, which this model has"):
        public_method("tome", checkout)(LEFT_OUT[what](), 3)


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "of transformers": (lambda: build("ViTModel"), r"got transformers\..*\.ViTModel"),
    "of open_clip": (lambda: build("open_clip"), r"got open_clip\..*VisionTransformer"),
    "with another block": (foreign_block, "got a block Identity with NoneType"),
    "with another attention": (foreign_attention, "got a block Block with Identity"),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("name", FILES)
def test_another_model_is_refused(name: str, case: str, checkout: Path) -> None:
    make, message = OTHERS[case]
    with pytest.raises(ArgumentError, match=f"public code of {name} takes timm's VisionTransformer, .* {message}"):
        public_method(name, checkout)(make(), 3)
