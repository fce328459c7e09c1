"""What a page shows is what the model did; and the page itself, in a browser."""

import copy
import html
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from alt_fast import load
from alt_fast.corpus import Corpus, Entity
from alt_fast.data.decode import decode_clip
from alt_fast.errors import FileError
from alt_fast.explain import main
from alt_fast.inference.alignment import use_text
from alt_fast.inference.explain import region_colors
from alt_fast.inference.predict import load_video
from alt_fast.inference.relevance import relevance_maps
from alt_fast.inference.trained import TrainedModel
from alt_fast.model.alt import ALT
from alt_fast.model.decoder import Attention
from alt_fast.report.explanation import Explanation
from alt_fast.report.page import owed_text, page_data, timeline, write_page
from alt_fast.report.seen import View, strongest
from tests.browser import data_of, look, needs_browser


@pytest.fixture(scope="module")
def trained(trained_run: Path) -> TrainedModel:
    return load(str(trained_run))


@pytest.fixture(scope="module")
def video(trained_run: Path) -> Path:
    return sorted((trained_run.parent / "data" / "unseen").glob("*.webm"))[0]


@pytest.fixture(scope="module")
def explanation(trained: TrainedModel, video: Path, tmp_path_factory: pytest.TempPathFactory) -> Explanation:
    """Of a video and with a label whose names would be markup."""
    copy = tmp_path_factory.mktemp("video") / "<script>alert(1)<script><b>.webm"
    shutil.copy(video, copy)
    return trained.explain(copy, ["a star growing", "</script><script>alert(1)</script>", "a moon growing"])


def test_the_numbers_are_the_model_s(trained: TrainedModel, video: Path, explanation: Explanation) -> None:
    """At every r."""
    model = trained.model
    schedule = model.encoder.schedule
    clip = load_video(video, trained.spec)
    assert [view.r for view in explanation.views] == [[r] * 4 for r in (0, 2, 4, 6)]
    assert explanation.view.r == schedule
    assert [(image.height, image.width) for image in explanation.images] == [model.image_size] * model.config.frames
    for view in explanation.views:
        model.encoder.set_r(view.r)
        check_view(view, model, clip, trained.templates)
    model.encoder.set_r(schedule)


def test_views_stand_by_the_tokens_that_are_left(trained: TrainedModel, video: Path) -> None:
    """Also where the model's own r is a fraction, and others are numbers."""
    own = trained.model.encoder.schedule
    trained.model.encoder.set_r(0.3)
    found = trained.explain(video, ["a star growing", "a moon growing"], also_r=[4, 0, 1])
    trained.model.encoder.set_r(own)
    counts = [len(view.frames[0].tokens) for view in found.views]
    assert counts == sorted(counts, reverse=True)
    assert found.view.r == [0.3] * 4
    assert found.own == 3


def check_view(view: View, model: ALT, clip: torch.Tensor, templates: Sequence[str]) -> None:
    with torch.inference_mode():
        classes = model.text.classes([label for label, _ in view.labels], templates)
        logits, _, entity, _ = model(clip, classes)
        seen = model.encoder(clip[0])
    assert [p for _, p in view.labels] == pytest.approx(logits[0].softmax(-1).tolist())
    assert [p for _, p in view.labels] == sorted((p for _, p in view.labels), reverse=True)
    assert model.corpus is not None
    names = [entity.unit for entity in model.corpus.entities]
    for t, frame in enumerate(view.frames):
        assert [token.size for token in frame.tokens] == seen.size[t].tolist()
        assert [token.entities[0][0] for token in frame.tokens] == [names[i] for i in entity[0, t].tolist()]
        assert torch.equal(frame.regions[-1], seen.source[t, 1:].long())
        assert sum(share for _, share in frame.ranking) == pytest.approx(1)
        sizes = frame.regions[-1].bincount(minlength=len(frame.tokens)).tolist()
        assert sizes[1:] == [token.size for token in frame.tokens[1:]]
    assert [text for text, _ in view.maps] == [f"action: {view.labels[0][0]}", *strongest(view.frames)]
    assert sum(view.attention) == pytest.approx(1)
    assert len(view.attention) == len(view.frames) == model.config.frames


def test_regions_merge_layer_by_layer(explanation: Explanation) -> None:
    """Each layer has r regions fewer, each a union of those before."""
    for r, frame in ((view.r[0], frame) for view in explanation.views for frame in view.frames):
        counts = [len(layer.unique()) for layer in frame.regions]
        assert counts == [36 - r * layer for layer in range(5)]
        for before, after in zip(frame.regions, frame.regions[1:], strict=False):
            assert all(len(after[before == region].unique()) == 1 for region in before.unique())


def test_what_the_answer_owes_to_the_entities(
    trained: TrainedModel, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing where the frames alone answer; all of it where the queries do."""
    model = trained.model
    monkeypatch.setattr(model, "answer", lambda pooled, frames: frames.mean(1))
    view = trained.explain(video, also_r=[]).view
    assert view.unaligned == pytest.approx(view.labels[0][1], rel=1e-4)
    monkeypatch.setattr(model, "answer", lambda pooled, frames: pooled.mean(1))
    monkeypatch.setattr(model, "logits", lambda z, classes: 100 * z @ classes.T)
    view = trained.explain(video, also_r=[]).view
    assert view.unaligned is not None
    assert view.unaligned < 0.9 * view.labels[0][1]


@pytest.mark.parametrize(
    ("p", "unaligned", "said"),
    [
        (0.5, 0.5, "would have 50.0 %, not 50.0 %: what the regions aligned to did not decide."),
        (0.5, 0.48, "would have 48.0 %, not 50.0 %: what the regions aligned to did not decide."),
        (0.5, 0.1, "would have 10.0 %, not 50.0 %."),
        (0.5, 0.9, "would have 90.0 %, not 50.0 %."),  # they held it down
    ],
)
def test_entities_decide_when_others_change_the_answer_up_or_down(
    p: float, unaligned: float, said: str, tmp_path: Path
) -> None:
    view = View([0], [("a star growing", p), ("a moon growing", 1 - p)], unaligned, [], [], [])
    assert owed_text(view) == f"With entities drawn at random instead, a star growing {said}"
    write_page(tmp_path / "page.html", Explanation("a.webm", [], (6, 6), [view], 0))
    assert data_of(tmp_path / "page.html")["views"][0]["owed"] == owed_text(view)
    assert owed_text(replace(view, unaligned=None)) == ""  # nothing aligns


def test_it_says_what_the_run_s_test_found_of_the_queries(trained_run: Path, video: Path) -> None:
    """As long as the model is the one that was tested."""
    found = json.loads((trained_run / "metrics.json").read_text())["alignment"]
    assert load(trained_run).explain(video, also_r=[]).probed == use_text(found)
    for change in (
        lambda trained: trained.interpolate(str(trained_run / "clip.safetensors"), 0.5),
        lambda trained: trained.use_corpus(None, ["object"]),
        lambda trained: trained.use_texts({trained.classes[0]: "something that moves"}),
        lambda trained: trained.set_r(0),
    ):
        trained = load(trained_run)
        change(trained)
        assert trained.explain(video, also_r=[]).probed == ""


@pytest.mark.parametrize(
    ("scores", "name"),
    [('{"alignment": {"videos": 0}}', "model"), ('{"alignment": null}', "model"), ("{}", "model"), ("", "other")],
)
def test_it_says_nothing_of_queries_where_no_test_did(
    scores: str, name: str, trained_run: Path, video: Path, tmp_path: Path
) -> None:
    shutil.copy(trained_run / "model.safetensors", tmp_path / f"{name}.safetensors")
    (tmp_path / "metrics.json").write_text(scores)
    assert load(tmp_path / f"{name}.safetensors").explain(video, also_r=[]).probed == ""


def test_scores_that_cannot_be_read_are_named(trained_run: Path, tmp_path: Path) -> None:
    shutil.copy(trained_run / "model.safetensors", tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(FileError, match="cannot read .*metrics.json"):
        load(tmp_path)


def test_two_senses_of_a_unit_are_told_apart(trained: TrainedModel, video: Path) -> None:
    """In names, shares and maps. Their embeddings are two tokens', so that both are chosen."""
    model, clip = copy.deepcopy(trained.model), load_video(video, trained.spec)
    model.use_corpus(Corpus((Entity("bow", "it shoots", "object"), Entity("bow", "a knot", "object"))))
    with torch.inference_mode():
        tokens = model.encode(clip).tokens[0, 0]
        near = F.cosine_similarity(tokens[:1], tokens, dim=-1)
        model.alignment.entities = F.normalize(tokens[[0, int(near.argmin())]], dim=-1)
        view = replace(trained, model=model).explain(video, also_r=[]).view
    both = {"bow: it shoots", "bow: a knot"}
    assert {name for frame in view.frames for name, _ in frame.ranking} == both
    assert all(sum(share for _, share in frame.ranking) == pytest.approx(1) for frame in view.frames)
    total = sum(sum(shares) for shares in timeline(view)["shares"])
    assert total == pytest.approx(len(view.frames))
    expected = relevance_maps(model.encoder, clip[0], model.alignment.entities, model.encoder.schedule)
    maps = dict(view.maps)
    for name, own in zip(("bow: it shoots", "bow: a knot"), expected, strict=True):
        torch.testing.assert_close(maps[name], own)
    assert not torch.allclose(*expected)


def test_an_action_called_as_an_entity_is_has_a_map_of_its_own(
    trained: TrainedModel, video: Path, explanation: Explanation
) -> None:
    entity = strongest(explanation.view.frames)[0]
    maps = dict(trained.explain(video, [entity], also_r=[]).view.maps)
    assert torch.equal(maps[entity], dict(explanation.view.maps)[entity])
    assert not torch.equal(maps[f"action: {entity}"], maps[entity])


def test_other_reductions(trained: TrainedModel, video: Path) -> None:
    """Those asked for, a schedule by layer, and fractions; the model keeps its own."""
    encoder = trained.model.encoder
    usual = encoder.schedule
    try:
        assert [view.r for view in trained.explain(video, ["a star"], [3, 4, 3]).views] == [[3] * 4, [4] * 4]
        encoder.set_r([4, 2, 2, 0])
        by_layer = trained.explain(video, ["a star"])
        assert [view.r for view in by_layer.views] == [[0] * 4, [2, 1, 1, 0], [4, 2, 2, 0], [6, 3, 3, 0]]
        assert by_layer.own == 2
        encoder.set_r(0.4)
        assert [view.r[0] for view in trained.explain(video, ["a star"]).views] == [0, 0.2, 0.4, 0.5]
        assert encoder.schedule == [0.4] * 4
        encoder.set_r(0)
        assert len(trained.explain(video, ["a star"]).views) == 1
        with pytest.raises(ValueError, match="r must be >= 0"):
            trained.explain(video, ["a star"], [-1])
    finally:
        encoder.schedule = usual


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


def test_maps_are_what_a_token_s_strength_changes(trained: TrainedModel, video: Path) -> None:
    """Activation times gradient is how a score changes when all that attention reads of a token grows."""
    torch.manual_seed(0)
    model = copy.deepcopy(trained.model).double()
    clip, schedule = load_video(video, trained.spec)[0].double(), [5] * 4
    with torch.inference_mode():
        tokens = model.encoder.start(clip)
        *layers, last = model.encoder.layers(schedule)
        for layer in layers:
            tokens = model.encoder.run_layer(*layer, tokens)

        def scores(texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            with last[0].ln_1.register_forward_hook(lambda norm, x, normed: normed * scale[:, None]):
                seen = model.encoder.finish(model.encoder.run_layer(*last, tokens)).tokens[:, 0]
            return torch.cosine_similarity(seen[None], texts[:, None], dim=-1)  # [K, T]

        ones, step = torch.ones(tokens.x.shape[1], dtype=torch.float64), 1e-3
        grown = [ones + step * torch.eye(len(ones))[i] for i in range(len(ones))]
        shrunk = [2 * ones - up for up in grown]

        def changes(texts: torch.Tensor) -> torch.Tensor:
            pairs = zip(grown, shrunk, strict=True)
            return torch.stack([(scores(texts, up) - scores(texts, down)) / (2 * step) for up, down in pairs], -1)

        one, other = F.normalize(torch.randn(2, 64, dtype=torch.float64), dim=-1)
        by_one, by_other = changes(torch.stack([one, other]))[:, :, 1:].mean((1, 2))
        text = one * by_other - other * by_one  # untrained, a text speaks for all patches or none: this one for some
        texts = torch.stack([text, -text])
        maps, change = relevance_maps(model.encoder, clip, texts, schedule), changes(texts)
    change = change.relu().gather(2, tokens.source()[None, :, 1:].long().expand(2, -1, -1))
    assert ((change == 0).double().mean((1, 2)) > 0.1).all()
    expected = change / change.amax((1, 2), keepdim=True)
    torch.testing.assert_close(maps, expected.float(), rtol=1e-3, atol=1e-3)
    single = relevance_maps(trained.model.encoder, clip.float(), texts.float(), schedule)
    torch.testing.assert_close(single, maps, rtol=1e-3, atol=1e-3)


def test_maps_of_frames_that_look_at_each_other(video: Path, trained: TrainedModel) -> None:
    """An adapter over time, which starts as no change, changes none: though it calls the same norm before."""
    model = ALT(replace(trained.model.config, tuning="stm"), trained.model.corpus)
    plain = copy.deepcopy(trained.model)
    model.encoder.visual.load_state_dict(plain.encoder.visual.state_dict())
    text = torch.randn(64)
    clip, texts = load_video(video, trained.spec)[0], torch.stack([text, -text])
    found, expected = (relevance_maps(m.encoder, clip, texts, [4] * 4) for m in (model, plain))
    assert expected.amax() == 1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


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
seen.undefined = document.body.innerText.includes("undefined");
const rows = () => [...byId("detail-rows").querySelectorAll(".row")].map((row) =>
  [row.firstChild.textContent, row.lastChild.textContent]);
setTimeout(() => {
  const canvas = panels[1].canvas, box = canvas.getBoundingClientRect();
  const at = {clientX: box.left + box.width * 0.99, clientY: box.top + box.height * 0.99, bubbles: true};
  canvas.dispatchEvent(new PointerEvent("pointermove", at));
  seen.corner = [byId("detail-title").textContent, rows()];
  canvas.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft", cancelable: true}));
  seen.chosen = panels[1].chosen;
  seen.ranking = [...byId("frame-rows").querySelectorAll(".row")].map((row) => row.firstChild.textContent);
  seen.owed = byId("owed").textContent;
  seen.probed = byId("probed").textContent;
  const labels = () => [...byId("labels").querySelectorAll(".row")].map((row) => row.textContent);
  seen.labels = labels();
  seen.r = byId("r-text").textContent;
  byId("r").value = 0;
  byId("r").dispatchEvent(new Event("input"));
  seen.unmerged = [byId("r-text").textContent, labels(), byId("layer-text").textContent, rows()];
  byId("r").value = 2;
  byId("r").dispatchEvent(new Event("input"));
  byId("layer").value = 0;
  byId("layer").dispatchEvent(new Event("input"));
  seen.layer = [byId("layer-text").textContent, byId("detail-title").textContent, rows().length];
  seen.wide = document.documentElement.scrollWidth > innerWidth;
  byId("layer").value = byId("layer").max;
  byId("layer").dispatchEvent(new Event("input"));
  const button = byId("timeline").querySelector("button");
  const patches = () => shown().frames.map((frame) => frame.regions[0].filter((_, patch) => lit(frame, patch)).length);
  button.click();
  seen.sought = [button.textContent, button.getAttribute("aria-pressed"), patches()];
  button.click();
  seen.all = patches();
  sought = "an entity that this r does not show";
  showView();
  seen.sane = patches();
  byId("map").value = shown().maps[0][0];
  byId("map").dispatchEvent(new Event("change"));
  seen.map = [mapped()[1], [...byId("map").options].map((option) => option.value)];
  seen.bold = document.querySelectorAll("b").length;
  document.body.replaceChildren(JSON.stringify(seen));
}, 300);
"""
    seen = look(tmp_path / "page.html", probe, tmp_path)
    assert seen["errors"] == []
    assert seen["title"] == Path(explanation.video).name
    frame, unmerged = explanation.view.frames[1], explanation.views[0]

    def shown(pairs: list[tuple[str, float]]) -> list[list[str]]:
        return [[name, f"{100 * p:.1f} %"] for name, p in pairs]

    token = frame.tokens[frame.regions[-1][-1]]
    patches = "1 patch" if token.size == 1 else f"{token.size} patches"
    assert seen["corner"] == [f"Frame 2, region of {patches}", shown(token.entities)]
    assert seen["chosen"] == 34
    assert not seen["undefined"]
    assert seen["ranking"] == [name for name, _ in frame.ranking[:6]]
    assert seen["labels"] == ["".join(pair) for pair in shown(explanation.view.labels)]
    assert seen["owed"] == owed_text(explanation.view) != ""
    assert seen["probed"] == explanation.probed != ""
    assert seen["r"] == "4, the model's own"
    assert seen["unmerged"] == [
        "0",
        ["".join(pair) for pair in shown(unmerged.labels)],
        "4 of 4: 36 regions",
        shown(unmerged.frames[1].tokens[35].entities),
    ]
    assert seen["layer"] == ["0 of 4: 36 regions", "Frame 2, region of 1 patch", 0]
    name, pressed, patches = seen["sought"]
    assert name == timeline(explanation.view)["names"][0]
    assert pressed == "true"
    assert patches == [
        sum(token.size for token in frame.tokens[1:] if token.entities[0][0] == name)
        for frame in explanation.view.frames
    ]
    assert seen["all"] == seen["sane"] == [36] * len(explanation.images)
    texts, maps = zip(*explanation.view.maps, strict=True)
    assert seen["map"] == [(100 * maps[0][1]).round().int().tolist(), ["-", *texts]]
    assert seen["bold"] == 0
    assert not seen["wide"]


def test_the_command(trained_run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(video), "--checkpoint", str(trained_run)]
    assert main([*command, "--out", str(tmp_path / "new" / "a.html"), "--labels", "growing", "shrinking"]) == 0
    assert "a.html: 0.0" in capsys.readouterr().out
    for name in ("a.png", "a.webm"):
        assert main([*command, "--out", str(tmp_path / name)]) == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > picture.height > 448
    shown = decode_clip(tmp_path / "a.webm", [0.25, 0.75])
    assert shown.shape[1] == 480 + 3 * 26 + 10
    assert np.abs(shown[0].astype(int) - shown[1]).mean() > 1  # one second a frame
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for arguments, message in [
        ([*command, "--out", str(tmp_path / "a.gif")], "the file must end in .html, .png, .webm, got "),
        ([*command, "--out", str(tmp_path / "b.png"), "--also-r", "0"], "--also-r is for pages (.html)"),
        ([str(tmp_path / "broken.mp4"), *command[1:], "--out", str(tmp_path / "b.html")], "broken.mp4"),
        ([str(video), "--checkpoint", str(tmp_path), "--out", "c.html"], "holds no model.safetensors"),
    ]:
        assert main(arguments) == (2 if "must end in" in message or "--also-r" in message else 1)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "b.html").exists()
    (tmp_path / "folder.html").mkdir()
    for place in ("broken.mp4/a.html", "folder.html"):  # known before any work, such as reading a model
        assert main([str(video), "--checkpoint", str(tmp_path), "--out", str(tmp_path / place)]) == 1
        assert f"{tmp_path / place.partition('/')[0]}: " in capsys.readouterr().err
