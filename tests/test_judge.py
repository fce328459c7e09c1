"""`alt-fast judge` as its user runs it: one method, somebody's own, a claim, a sweep that goes on, bad input."""

import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitImageProcessor, ViTConfig, ViTForImageClassification

from alt_fast.__main__ import main
from alt_fast.judge import reduction

QUICK = ["--batches", "2", "--rounds", "2", "--count", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tower of transformers."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tower")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTForImageClassification(ViTConfig(**small, image_size=64, patch_size=8, num_labels=7)).save_pretrained(path)
    BitImageProcessor(size={"shortest_edge": 64}, crop_size=64).save_pretrained(path)
    return path


def judge(folder: Path, *options: object) -> int:
    return main(["judge", "--model", f"hf:{folder}", "--modes", "inference", *QUICK, *map(str, options)])


def sweep(folder: Path, *options: object) -> int:
    return main(["judge", "--sweep", "--model", f"hf:{folder}", *QUICK, *map(str, options)])


def data_of(page: Path) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_one_method(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alt_fast.measure.judge.TOO_FAST", math.inf)  # few rounds on a busy computer say anything
    out, page = tmp_path / "new" / "tome.jsonl", tmp_path / "tome.html"
    assert judge(folder, "--r", 3, "--out", out, "--page", page, "--claim", 0.01) == 0
    said = capsys.readouterr().out
    assert "tome, r = 3: 65 tokens at first, 59 at last" in said
    assert "no fault found" in said
    assert "a speed-up of 0.01 is possible here" in said
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["model"] == f"hf:{folder.name}"  # and not where it lies
    assert row["images"] == "3 images, 64 x 64 pixels, frames of Motion Shapes 2"
    assert row["provenance"]["packages"]["torch"] == torch.__version__
    assert row["flop_ratio"] > 1
    (shown,) = data_of(page)["rows"]
    assert shown["races"] == row["races"]


MINE = """
import alt_fast

def four_fewer(model, r):
    \"\"\"Four fewer tokens, whatever r is.\"\"\"
    alt_fast.apply_patch(model, r=4)

def fails(model, r):
    raise RuntimeError("not today")
"""


def test_somebody_s_own_is_judged_and_its_faults_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_methods.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_methods", raising=False)
    assert judge(folder, "--method", "my_methods:four_fewer", "--r", 3, "--claim", 50) == 1
    said = capsys.readouterr().out
    assert "FAULT r ignored: with another r it leaves the same tokens and returns the same (r = 3 and 1)" in said
    assert "a speed-up of 50 is impossible here: above the FLOP ratio" in said


def test_a_method_that_fails_is_told_and_the_others_are_judged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_methods.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_methods", raising=False)
    options = ["--method", "my_methods:fails", "threshold", "tome", "--r", 3, "--page", tmp_path / "page.html"]
    assert judge(folder, *options) == 1
    said, noted = capsys.readouterr()
    assert "my_methods:fails, r = 3: not judged: RuntimeError: not today" in said
    assert "threshold, r = 3: not judged: ArgumentError: r of threshold merging is a cosine in [-1, 1], got 3" in said
    assert "tome, r = 3: 65 tokens at first" in said
    assert "Traceback" in noted
    assert [row.get("refused") is None for row in data_of(tmp_path / "page.html")["rows"]] == [False, False, True]
    assert sweep(folder, "--method", "my_methods:fails", "tome", "--r", 3, "--page", tmp_path / "page.html") == 0
    assert "my_methods:fails, r = 3: not measured: RuntimeError: not today" in capsys.readouterr().out
    assert len(data_of(tmp_path / "page.html")["sweep"]) == 1
    assert sweep(folder, "--method", "my_methods:fails", "--r", 3) == 1


def test_a_sweep_goes_on_where_it_was(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page = tmp_path / "sweep.jsonl", tmp_path / "sweep.html"
    options = ["--method", "tome", "random", "--out", out, "--page", page, "--r"]
    assert sweep(folder, *options, 2) == 0
    first = out.read_text().splitlines()
    assert sweep(folder, *options, 2, 6) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert out.read_text().splitlines()[:2] == first
    assert [(row["method"], row["r"]) for row in rows] == [("tome", 2), ("random", 2), ("tome", 6), ("random", 6)]
    said = capsys.readouterr().out
    assert "* faster than the model, and no other setting is as fast and agrees as well" in said
    data = data_of(page)
    assert len(data["sweep"]) == 4
    assert set(data["front"]) <= set(range(4))
    assert sweep(folder, *options, 2, "--dtype", "bfloat16") == 0  # another model: nothing carries over
    assert len(out.read_text().splitlines()) == 6


def test_a_sweep_does_not_go_on_with_other_weights_or_code(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and folders may have the names of others."""
    (tmp_path / "my_methods.py").write_text(MINE)
    monkeypatch.delitem(sys.modules, "my_methods", raising=False)
    out = tmp_path / "sweep.jsonl"
    options = ["--path", tmp_path, "--method", "my_methods:four_fewer", "--r", 2, "--out", out]
    assert sweep(folder, *options) == sweep(folder, *options) == 0
    assert len(out.read_text().splitlines()) == 1
    other = tmp_path / "other" / folder.name
    shutil.copytree(folder, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: weight + 0.01 for name, weight in weights.items()}, other / "model.safetensors", {"format": "pt"})
    assert sweep(other, *options) == 0
    assert len(out.read_text().splitlines()) == 2
    (tmp_path / "my_methods.py").write_text(MINE.replace("r=4", "r=5"))
    monkeypatch.delitem(sys.modules, "my_methods")
    assert sweep(other, *options) == 0
    assert len(out.read_text().splitlines()) == 3


def test_a_claim_without_a_ceiling_is_not_shown_and_the_rest_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(model: nn.Module, counts: object, images: object) -> nn.Module:
        return nn.Identity()  # which returns no logits

    def refuse(*tensors: object) -> None:
        raise RuntimeError("tables of other lengths")

    monkeypatch.setattr("alt_fast.measure.judge.dropping", none)
    monkeypatch.setattr(nn.Identity, "forward", refuse)
    assert judge(folder, "--r", 3, "--claim", 1.1) == 1
    said = capsys.readouterr().out
    assert "a claim needs a ceiling, and no race has one (RuntimeError: tables of other lengths)" in said
    assert "tome, r = 3: 65 tokens at first, 59 at last" in said


def test_own_pictures(folder: Path, tmp_path: Path) -> None:
    for i in range(2):
        Image.new("RGB", (50, 40), (90 * i, 10, 10)).save(tmp_path / f"{i}.jpg")
    out = tmp_path / "rows.jsonl"
    assert judge(folder, "--r", 3, "--images", tmp_path, "--out", out) == 0
    assert json.loads(out.read_text())["images"] == f"2 images, 64 x 64 pixels, of {tmp_path.name}"


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--method", "tomo"], 2, "method must be one of tome, "),
        (["--method", "no.such:thing"], 2, "no.such cannot be imported"),
        (["--count", 1], 2, "--count must be >= 2, got 1"),
        (["--rounds", 1], 2, "rounds must be >= 2"),
        (["--batches", 0], 2, "batches must be >= 1"),
        (["--sweep"], 2, "--claim, --public and --modes have no effect on a --sweep"),
        (["--public", "evit", "."], 2, "--public evit has no effect: judge it with --method"),
        (["--public", "tome", "/nowhere"], 2, "/nowhere does not hold the public code of tome"),
        (["--method", "evit", "--public", "evit", "."], 2, "public code is known of tome, pitome, tofu, got evit"),
        (["--public", "tome", ".", "--public", "tome", ".."], 2, "--public takes one checkout of each method"),
        (["--out", "/tmp/a/../rows", "--page", "/tmp/rows"], 2, "--out and --page are the same file, /tmp/a/../rows"),
        (["--images", "/nowhere.png"], 1, "cannot read image /nowhere.png"),
        (["--r", -1], 2, "r must be >= 0"),
        (["--page", "/proc/none/page.html"], 1, "cannot make folder /proc/none"),
        (["--out", "/proc/rows.jsonl"], 1, "cannot write /proc/rows.jsonl"),
    ],
)
def test_bad_input_is_named(
    options: list[object], status: int, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(folder, *options) == status
    assert message in capsys.readouterr().err


def test_a_file_that_holds_no_results_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe\x00")
    assert sweep(folder, "--method", "tome", "--r", 2, "--out", tmp_path / "rows.jsonl") == 1
    assert "rows.jsonl, which should hold JSON lines" in capsys.readouterr().err


def test_a_sweep_takes_one_batch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(folder, "--batches", 2, 4) == 2
    assert "--sweep takes one of --batches, got 2" in capsys.readouterr().err


def test_what_is_no_model_or_no_number_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "--model", "jax:vit"]) == 2
    assert "model must be timm:NAME, hf:NAME or open_clip:NAME, got 'jax:vit'" in capsys.readouterr().err
    for r in ("many", "nan", "2,inf"):
        with pytest.raises(SystemExit):
            judge(folder, "--r", r)
        assert f"must be a number, or one per layer with commas, got '{r}'" in capsys.readouterr().err
    assert [reduction(text) for text in ("8", "1e-1", "8,8,4.5")] == [8, 0.1, [8, 8, 4.5]]
    for claim in ("nan", "-1", "0", "inf", "fast"):
        with pytest.raises(SystemExit):
            judge(folder, f"--claim={claim}")
        assert f"must be a speed-up, above 0, got '{claim}'" in capsys.readouterr().err
    assert main(["judge", "--model", "timm:resnet18", "--weights", "random", *QUICK]) == 2
    assert "one vision tower that apply_patch knows, got 0" in capsys.readouterr().err
