"""What a page shows is what the model did; and the page itself, in a browser."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from alt_fast import load
from alt_fast.checkpoint import TrainedModel
from alt_fast.classify import load_video
from alt_fast.data.decode import decode_clip
from alt_fast.decoder import Attention
from alt_fast.explain import Explanation, explain, main, region_colors
from alt_fast.explain_page import page_data, write_page
from tests.browser import look, needs_browser


@pytest.fixture(scope="module")
def trained(trained_run: Path) -> TrainedModel:
    return load(str(trained_run))


@pytest.fixture(scope="module")
def video(trained_run: Path) -> Path:
    return sorted((trained_run.parent / "data" / "unseen").glob("*.webm"))[0]


@pytest.fixture(scope="module")
def explanation(trained: TrainedModel, video: Path) -> Explanation:
    return explain(video, trained, ["a star growing", "</script><script>alert(1)</script>", "a moon growing"])


def test_the_numbers_are_the_model_s(trained: TrainedModel, video: Path, explanation: Explanation) -> None:
    model = trained.model
    clip = load_video(video, trained)
    with torch.inference_mode():
        classes = model.text.classes([label for label, _ in explanation.labels], trained.templates)
        logits, _, entity = model(clip, classes)
        seen = model.encoder(clip[0])
    assert [p for _, p in explanation.labels] == pytest.approx(logits[0].softmax(-1).tolist())
    assert [p for _, p in explanation.labels] == sorted((p for _, p in explanation.labels), reverse=True)
    assert model.corpus is not None
    names = [entity.unit for entity in model.corpus.entities]
    for t, frame in enumerate(explanation.frames):
        assert [token.size for token in frame.tokens] == seen.size[t].tolist()
        assert [token.entities[0][0] for token in frame.tokens] == [names[i] for i in entity[0, t].tolist()]
        assert torch.equal(frame.regions[-1], seen.source[t, 1:].long())
        assert sum(share for _, share in frame.ranking) == pytest.approx(1)
        sizes = frame.regions[-1].bincount(minlength=len(frame.tokens)).tolist()
        assert sizes[1:] == [token.size for token in frame.tokens[1:]]
    assert sum(explanation.attention) == pytest.approx(1)
    assert len(explanation.attention) == len(explanation.frames) == model.config.frames


def test_regions_merge_layer_by_layer(explanation: Explanation) -> None:
    """Each layer has r regions fewer, each a union of those before."""
    for frame in explanation.frames:
        counts = [len(layer.unique()) for layer in frame.regions]
        assert counts == [36 - 4 * layer for layer in range(5)]
        for before, after in zip(frame.regions, frame.regions[1:], strict=False):
            assert all(len(after[before == region].unique()) == 1 for region in before.unique())


def test_a_region_keeps_its_color() -> None:
    first = torch.tensor([1, 1, 1, 2, 2, 2, 2, 3])
    moved = torch.tensor([4, 1, 1, 1, 2, 2, 2, 2])  # the same regions under other numbers, one patch on
    a, b = region_colors(torch.stack([first, moved]))
    assert (a[1], a[2]) == (b[1], b[2])
    assert b[4] not in a.values()
    assert len(set(b.values())) == 3


def test_attention_weights_are_those_of_the_attention() -> None:
    torch.manual_seed(0)
    attention = Attention(128)
    x, context = torch.randn(2, 3, 128), torch.randn(2, 5, 128)
    q, k, v = attention._project(x, context)
    values = F.one_hot(torch.arange(5), 64).float().expand(2, 2, 5, 64)
    expected = F.scaled_dot_product_attention(q, k, values)[..., :5].mean(1)
    torch.testing.assert_close(attention.weights(x, context), expected)
    assert v.shape == (2, 2, 5, 64)


def test_the_page_holds_the_numbers_and_nothing_from_elsewhere(explanation: Explanation, tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", explanation)
    page = (tmp_path / "page.html").read_text()
    found = re.search(r'id="data">(.*?)</script>', page)
    assert found is not None
    assert json.loads(found[1]) == json.loads(json.dumps(page_data(explanation)))
    assert "alert(1)" in found[1]
    assert not re.search(r"""(src|href)=["']?(?!data:)|https?://|url\(|@import""", page.replace(found[1], ""))
    assert len(page) < 5_000_000


def test_a_notebook_shows_the_page(explanation: Explanation, tmp_path: Path) -> None:
    shown = re.fullmatch(r'<iframe srcdoc="([^"]*)"[^>]*></iframe>', explanation._repr_html_())
    assert shown is not None
    write_page(tmp_path / "page.html", explanation)
    assert html.unescape(shown[1]) == (tmp_path / "page.html").read_text()


@needs_browser
def test_in_a_browser(explanation: Explanation, tmp_path: Path) -> None:
    """It loads without errors; pointing at a region shows its entities; the slider moves; so do the arrow keys."""
    write_page(tmp_path / "page.html", explanation)
    probe = """
const seen = {errors: window.failures, title: byId("title").textContent, scripts: document.scripts.length};
const rows = () => [...byId("detail-rows").querySelectorAll(".row")].map((row) =>
  [row.firstChild.textContent, row.lastChild.textContent]);
setTimeout(() => {
  const canvas = views[1].canvas, box = canvas.getBoundingClientRect();
  const at = {clientX: box.left + box.width * 0.99, clientY: box.top + box.height * 0.99, bubbles: true};
  canvas.dispatchEvent(new PointerEvent("pointermove", at));
  seen.corner = [byId("detail-title").textContent, rows()];
  canvas.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft", cancelable: true}));
  seen.chosen = views[1].chosen;
  byId("layer").value = 0;
  byId("layer").dispatchEvent(new Event("input"));
  seen.layer = [byId("layer-text").textContent, byId("detail-title").textContent, rows().length];
  seen.labels = [...byId("labels").querySelectorAll(".row")].map((row) => row.textContent);
  seen.wide = document.documentElement.scrollWidth > innerWidth;
  document.body.replaceChildren(JSON.stringify(seen));
}, 300);
"""
    seen = look(tmp_path / "page.html", probe, tmp_path)
    assert seen["errors"] == []
    assert seen["title"] == Path(explanation.video).name
    frame = explanation.frames[1]
    token = frame.tokens[frame.regions[-1][-1]]
    patches = "1 patch" if token.size == 1 else f"{token.size} patches"
    assert seen["corner"][0] == f"Frame 2, region of {patches}"
    assert seen["corner"][1] == [[name, f"{100 * p:.1f} %"] for name, p in token.entities]
    assert seen["chosen"] == 34
    assert seen["layer"] == ["0 of 4: 36 regions", "Frame 2, region of 1 patch", 0]
    assert seen["labels"] == [f"{label}{100 * p:.1f} %" for label, p in explanation.labels]
    assert not seen["wide"]


def test_the_command(trained_run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(video), "--checkpoint", str(trained_run)]
    assert main([*command, "--out", str(tmp_path / "a.html"), "--labels", "growing", "shrinking"]) == 0
    assert "a.html: 0.0" in capsys.readouterr().out
    for name in ("a.png", "a.webm"):
        assert main([*command, "--out", str(tmp_path / name)]) == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > picture.height > 448
    shown = decode_clip(tmp_path / "a.webm", [0.25, 0.75])
    assert shown.shape[1] == 480 + 62
    assert np.abs(shown[0].astype(int) - shown[1]).mean() > 1  # one second a frame
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for arguments, message in [
        ([*command, "--out", str(tmp_path / "a.gif")], "--out must end in .html, .png, .webm, got "),
        ([str(tmp_path / "broken.mp4"), *command[1:], "--out", str(tmp_path / "b.html")], "broken.mp4"),
        ([str(video), "--checkpoint", str(tmp_path), "--out", "c.html"], "holds no model.safetensors"),
    ]:
        assert main(arguments) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "b.html").exists()
