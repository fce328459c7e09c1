"""The benchmarks' own parts: the published algorithm equals ours, closed forms equal counts, races tell what ran."""

import copy
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import alt_fast
from alt_fast.measure.memory import saved_bytes
from alt_fast.measure.timing import Race, check_writes
from alt_fast_kernels import proportional_attention_qkvpacked
from benchmarks.closed_form import ViT, vit_macs
from benchmarks.compare import read_results
from benchmarks.peers import PublishedToMe, attention_peers, published_alt
from tests.processes import start

SHAPE = ViT(patch=8, width=48, depth=3, num_heads=3, image=32)


def small_vit() -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(32, 8, embed_dim=48, depth=3, num_heads=3, num_classes=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("r", [1, 3, 5])
def test_the_published_algorithm_equals_ours(r: int) -> None:
    model = small_vit()
    images = torch.randn(4, 3, 32, 32)
    published = PublishedToMe(model, r)
    with torch.no_grad():
        torch.testing.assert_close(alt_fast.apply_patch(model, r=r)(images), published(images), rtol=1e-3, atol=1e-4)


def test_alt_with_the_published_algorithm_equals_ours(corpus: alt_fast.Corpus) -> None:
    torch.manual_seed(0)
    model = alt_fast.create_model("alt_tiny", corpus, frames=2).eval()
    video = torch.randn(3, 2, 3, *model.image_size)
    with torch.no_grad():
        expected, found = model.encode(video), published_alt(model).encode(video)
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-3, atol=1e-4)  # tokens and sizes: it keeps no trace


def test_bytes_saved_for_the_backward_pass() -> None:
    """A sine keeps its input, a matrix product of it the sine: once each; parameters are not counted, inputs are."""
    weight = torch.randn(16, 8, requires_grad=True)
    x = torch.randn(4, 16)
    assert saved_bytes(lambda: (x * 2).sin() @ weight) == 4 * 16 * 4
    assert saved_bytes(lambda: ((x @ weight).sin() + 1).cos()) == 4 * 16 * 4 + 2 * 4 * 8 * 4
    layer = torch.nn.Linear(16, 8)  # which keeps a view of its weight
    assert saved_bytes(lambda: layer(x)) == 4 * 16 * 4
    assert saved_bytes(lambda: layer((x.clone().requires_grad_() * 2).sin())) == 2 * 4 * 16 * 4
    layer.requires_grad_(False)
    assert saved_bytes(lambda: layer((x.clone().requires_grad_() * 2).sin())) == 4 * 16 * 4


@pytest.mark.parametrize("r", [0, 3, 100])
def test_closed_form_equals_the_count(r: int) -> None:
    model = alt_fast.apply_patch(small_vit(), r=r)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.randn(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * vit_macs(SHAPE, r)


def test_attention_peers_agree() -> None:
    qkv, size = torch.randn(2, 19, 3, 2, 16), torch.randint(1, 9, (2, 19)).float()
    for name, attend in attention_peers(qkv, size).items():
        sizes = None if name == "SDPA without sizes" else size
        expected = proportional_attention_qkvpacked(qkv, sizes)
        torch.testing.assert_close(attend(), expected, rtol=1e-4, atol=1e-5, msg=name)


def test_race_ratios_go_by_round_and_name_who_is_skipped() -> None:
    def fail() -> None:
        raise RuntimeError("no such device")

    race = Race()
    race.add("works", lambda: None, "cpu")
    race.add("fails", fail, "cpu")
    assert race.skipped == {"fails": "RuntimeError: no such device"}
    race.seconds = {"slow": [2.0, 40.0, 6.0], "fast": [1.0, 20.0, 2.0]}  # one slow moment, which met both
    assert race.ratio("slow", "fast")[1] == 2.0


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_a_replay_that_writes_nothing_is_no_time(mode: Callable[[], AbstractContextManager[None]]) -> None:
    with mode():
        out, counts = torch.ones(3, requires_grad=True) * 2, torch.zeros(3, dtype=torch.int64)
    check_writes((out, {"counts": counts}), lambda: out.fill_(1.0))
    with pytest.raises(AssertionError, match="leaves its outputs unwritten"):
        check_writes((out, counts), lambda: counts.fill_(1))


def test_the_command_measures_reports_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, results = Path(__file__).parent.parent.parent, tmp_path / "results.jsonl"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in [name for name in os.environ if "XDIST" in name]:
        monkeypatch.delenv(name)
    files = [str(root / "benchmarks" / name) for name in ("test_audit.py", "test_ops.py")]
    chosen = ["--benchmark-only", "-k", "(align and not backward) or (torchvision and ViT-B/16)"]
    with start("pytest", *files, *chosen, "--rounds", "2", "--results", str(results)) as process:
        assert process.wait(300) == 0, process.output + process.errors
        printed = process.output
    for text in (
        "torchvision ViT-B/16",
        "matmul of its shape",
        "assignment in memory",
        "skipped: 100,000 entities take too long on a CPU",
    ):
        assert text in printed
    head, *rows = map(json.loads, results.read_text().splitlines())
    assert head["provenance"]["packages"]["torch"] == torch.__version__
    assert len(read_results(results)[1]) == len(rows) - 1  # of contestants
    audited, *rows, whole = rows
    assert 0 < whole["whole_run"] < 600
    assert audited["row"] == "torchvision ViT-B/16"
    assert {row["contestant"] for row in rows} == {"alt_fast", "assignment in memory", "matmul of its shape"}
    assert all(row["rounds"] == 2 and row["seconds"] > 0 for row in rows)


def test_published_copies_its_model() -> None:
    model = small_vit()
    before = copy.deepcopy(model.state_dict())
    published = PublishedToMe(model, 2)
    with torch.no_grad():
        next(published.parameters()).zero_()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
