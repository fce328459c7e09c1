"""The calls a stranger makes: classify, features, explain, on a path or several."""

import copy
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import alt_fast
from alt_fast.data.annotations import Video
from alt_fast.data.batch import Failure
from alt_fast.data.config import Loading
from alt_fast.data.decode import VideoError
from alt_fast.distributed import World
from alt_fast.errors import RunError
from alt_fast.evaluate import score as evaluated
from alt_fast.inference.predict import load_video, predict_batches
from alt_fast.inference.scoring import EvalConfig, evaluate
from alt_fast.inference.trained import save_model
from alt_fast.inference.zero_shot import score_zero_shot
from tests.browser import data_of
from tests.conftest import NoiseWriter, VideoWriter

LABELS = ["a star growing", "a moon growing", "surfing"]


@pytest.fixture(scope="module")
def model(trained_run: Path) -> alt_fast.TrainedModel:
    return alt_fast.load(trained_run)


@pytest.fixture(scope="module")
def videos(trained_run: Path) -> list[Path]:
    return sorted((trained_run.parent / "data" / "test").glob("*.webm"))[:3]


def test_classify_one(model: alt_fast.TrainedModel, videos: list[Path]) -> None:
    found = model.classify(str(videos[0]), labels=LABELS, top_k=2)
    assert isinstance(found, alt_fast.Prediction)
    assert [label for label, _ in found] == [found[0][0], found[1][0]]
    assert {label for label, _ in found} < set(LABELS)
    assert found[0][1] >= found[1][1]
    assert sum(p for _, p in model.classify(videos[0], LABELS, top_k=None)) == pytest.approx(1)
    assert len(found.frames) == model.model.config.frames
    for frame in found.frames:
        assert sum(share.share for share in frame) == pytest.approx(1)
        assert [share.share for share in frame] == sorted((share.share for share in frame), reverse=True)
    assert len(model.classify(videos[0])) == 5
    assert model.classify(videos[0], head="clip").frames == []


def test_classify_several(model: alt_fast.TrainedModel, videos: list[Path], tmp_path: Path) -> None:
    several = model.classify(videos, LABELS)
    for found, video in zip(several, videos, strict=True):
        alone = model.classify(video, LABELS)
        assert (found.video, found.frames) == (alone.video, alone.frames)
        assert dict(found) == pytest.approx(dict(alone), rel=1e-4)
    bad = tmp_path / "broken.mp4"
    bad.write_text("no video")
    with pytest.raises(VideoError, match=r"broken.mp4"):
        model.classify([videos[0], bad], LABELS)
    first, second = model.classify([bad, videos[1]], LABELS, errors="return")
    assert isinstance(first, Failure)
    assert isinstance(second, alt_fast.Prediction)
    assert (first.path, second.video) == (str(bad), str(videos[1]))
    assert dict(second) == pytest.approx(dict(several[1]), rel=1e-4)


def test_classify_several_views(model: alt_fast.TrainedModel, videos: list[Path]) -> None:
    """The mean over them, also where a video's views do not fit a batch, as tests take it."""
    testing = EvalConfig(2, clips=3, loading=Loading("torch", workers=0), head="both")
    several = model.classify(videos, LABELS, None, "both", testing=testing)
    listed = [Video(video, 0) for video in videos]
    scores = evaluate(model.model, listed, model.spec, model.embed(LABELS), testing).scores
    for found, row in zip(several, scores.tolist(), strict=True):
        assert dict(found) == pytest.approx(dict(zip(LABELS, row, strict=True)), rel=1e-4)
        assert len(found.frames) == 3 * model.model.config.frames


def test_what_is_said_depends_on_the_share_alone(model: alt_fast.TrainedModel, videos: list[Path]) -> None:
    """To the last bit, whoever else is asked about what."""
    testing, choice = EvalConfig(2, loading=Loading("torch", workers=0)), model.choice(LABELS)
    first, second = predict_batches(videos, model.model, model.spec, choice, testing)
    assert (len(first), len(second)) == (2, 1)
    assert list(predict_batches(videos, model.model, model.spec, choice, testing, [range(2, 3)])) == [second]


def test_what_cannot_be_asked(model: alt_fast.TrainedModel, videos: list[Path]) -> None:
    for use in (model.classify, model.find_segments, model.explain):
        with pytest.raises(alt_fast.AltFastError, match="labels must be a list of texts, got 'surfing'"):
            use("a.mp4", labels="surfing")
    with pytest.raises(alt_fast.AltFastError, match="labels must not be empty"):
        model.classify(videos[0], [])
    words = " ".join(["word"] * 80)
    with pytest.raises(alt_fast.AltFastError, match=r"labels must differ in what CLIP reads, and '.* y' and '"):
        model.classify(videos[0], [f"{words} x", f"{words} y"])
    with pytest.raises(alt_fast.AltFastError, match=r"top_k must be an int >= 1, got 2\.5"):
        model.classify("none.mp4", top_k=2.5)  # type: ignore[call-overload]
    with pytest.raises(alt_fast.AltFastError, match="labels must differ, got 'surfing' twice"):
        model.classify(videos, ["surfing", "eating", "surfing"])
    with pytest.raises(alt_fast.AltFastError, match=r"got 'tai chi' and ' Tai  Chi', which CLIP reads alike"):
        model.classify(videos[0], ["tai chi", " Tai  Chi"])
    with pytest.raises(alt_fast.AltFastError, match="labels must be texts, got 1"):
        model.classify(videos[0], [1])  # type: ignore[list-item]
    for use in (model.classify, model.find_segments):
        with pytest.raises(alt_fast.AltFastError, match="head must be one of alt, clip, both, got 'CLIP'"):
            use(videos[0], LABELS, head="CLIP")  # type: ignore[call-overload, arg-type]
    with pytest.raises(alt_fast.AltFastError, match="head must be one of alt, clip, both, got ''"):
        EvalConfig(head="")  # type: ignore[arg-type]
    with pytest.raises(alt_fast.AltFastError, match="errors must be 'raise' or 'return', got 'ignore'"):
        model.classify(videos, LABELS, errors="ignore")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="top_k must be an int >= 1, got 0"):
        model.classify(videos[0], top_k=0)
    with pytest.raises(ValueError, match=r"must end in \.html, \.png, \.webm, got a\.txt"):
        model.explain(videos[0], LABELS, []).save("a.txt")


def test_an_error_that_a_session_keeps_keeps_no_processes(model: alt_fast.TrainedModel, videos: list[Path]) -> None:
    """A notebook holds the last exception, its traceback and all that its frames refer to."""
    loading = Loading("torch", workers=2)
    with pytest.raises(VideoError) as kept:
        model.classify([videos[0], "nowhere.mp4"] * 20, LABELS, testing=EvalConfig(2, loading=loading))
    assert multiprocessing.active_children() == []
    broken = replace(model, model=copy.deepcopy(model.model))
    torch.nn.init.constant_(next(broken.model.decoder.parameters()), float("nan"))
    with pytest.raises(RunError) as kept_too:
        broken.features(videos * 4, EvalConfig(2, loading=loading))
    assert multiprocessing.active_children() == []
    assert "nowhere.mp4" in str(kept.value)
    assert "not finite" in str(kept_too.value)


def test_features_of_no_videos(model: alt_fast.TrainedModel) -> None:
    assert len(model.features([])) == 0


def test_what_shows_nothing_is_not_named(
    model: alt_fast.TrainedModel, videos: list[Path], write_video: VideoWriter
) -> None:
    grey = write_video("grey.mp4", frames=8)
    cause = "nothing can be told: every frame is of one colour"
    with pytest.raises(VideoError, match=f"grey.mp4: {cause}"):
        model.classify(grey, LABELS)
    with pytest.raises(VideoError, match=f"grey.mp4: {cause}"):
        model.explain(grey, LABELS)
    testing = EvalConfig(2, clips=2, loading=Loading("torch", workers=0))
    first, second = model.classify([grey, videos[0]], LABELS, errors="return", testing=testing)
    assert first == Failure(str(grey), cause)
    assert isinstance(second, alt_fast.Prediction)


def test_scores_that_are_not_finite_are_an_error(
    model: alt_fast.TrainedModel, videos: list[Path], write_noise: NoiseWriter
) -> None:
    broken = replace(model, model=copy.deepcopy(model.model))
    with torch.no_grad():
        broken.model.logit_scale.fill_(torch.nan)
    testing = EvalConfig(loading=Loading("torch", workers=0))
    listed = [Video(video, 0) for video in videos]
    long = write_noise("a.mp4", "libx264", frames=30)
    uses: tuple[Callable[[], object], ...] = (
        lambda: broken.classify(videos[0], LABELS),
        lambda: broken.classify(videos, LABELS, testing=testing),
        lambda: broken.explain(videos[0], LABELS),
        lambda: broken.find_segments(long, LABELS, 0.5, 1, loading=testing.loading),
        lambda: score_zero_shot(broken, "list", listed, LABELS, testing),
        lambda: evaluated("list", listed, LABELS, broken, testing, World()),
    )
    for use in uses:
        with pytest.raises(RunError, match=r"the model's scores are not finite \(NaN\)"):
            use()


def test_features(model: alt_fast.TrainedModel, videos: list[Path], tmp_path: Path) -> None:
    testing = EvalConfig(loading=Loading("torch", workers=0))
    vectors = model.features(videos, testing)
    assert vectors.shape == (3, model.model.alignment.entities.shape[1])
    for video, vector in zip(videos, vectors, strict=True):
        with torch.inference_mode():
            expected = model.model.describe(load_video(video, model.spec))[0]
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.features(videos[1], testing), vectors[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(VideoError, match="none.mp4: no such file"):
        model.features([videos[0], tmp_path / "none.mp4"], testing)


def test_explain(model: alt_fast.TrainedModel, videos: list[Path], tmp_path: Path) -> None:
    explanation = model.explain(videos[0], LABELS, also_r=[0])
    assert isinstance(explanation, alt_fast.Explanation)
    assert "<iframe" in explanation._repr_html_()
    explanation.save(tmp_path / "new" / "page.html")
    explanation.save(tmp_path / "page.png")
    assert [view["r"] for view in data_of(tmp_path / "new" / "page.html")["views"]] == ["0", "4"]
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.width > 448


def test_pages_are_made_to_be_sent_to_others(model: alt_fast.TrainedModel, videos: list[Path], tmp_path: Path) -> None:
    """They show the name of the file, and no folder of the machine that made them."""
    model.explain(videos[0], LABELS, []).save(tmp_path / "page.html")
    assert data_of(tmp_path / "page.html")["video"] == videos[0].name
    assert str(videos[0].parent) not in (tmp_path / "page.html").read_text()


def test_another_corpus_by_name_and_device(model: alt_fast.TrainedModel, trained_run: Path, tmp_path: Path) -> None:
    """Kept with the model, of which no category is asked twice."""
    again = alt_fast.load(trained_run).to("cpu")
    assert again.device == torch.device("cpu")
    again.set_r(0)
    assert again.model.encoder.schedule == [0] * 4
    again.use_corpus("motion_shapes", ["motion"])
    assert again.model.corpus is not None
    assert {entity.category for entity in again.model.corpus.entities} == {"motion"}
    for categories in (["motion"], None):
        again.use_corpus("motion_shapes", categories)
        save_model(tmp_path / "again.safetensors", again)
        kept = alt_fast.load(tmp_path / "again.safetensors").model
        assert kept.corpus == again.model.corpus
        assert torch.equal(kept.alignment.entities, again.model.alignment.entities)


def test_zero_shot_needs_no_training(videos: list[Path], tmp_path: Path) -> None:
    from alt_fast.model.clip_weights import build_clip

    torch.save(build_clip("tiny").state_dict(), tmp_path / "clip.pt")
    clips = [alt_fast.load_clip("tiny", str(tmp_path / "clip.pt"), r=2) for _ in range(2)]
    first, second = (clip.classify(videos[0], LABELS) for clip in clips)
    assert len(first) == 3
    assert first == second  # nothing random is asked
    for call in (
        lambda: clips[0].classify(videos[0], LABELS, head="alt"),
        lambda: clips[0].features(videos[0]),
        lambda: clips[0].explain(videos[0], LABELS),
        lambda: score_zero_shot(
            clips[0], "mine", [Video(videos[0], 0)], LABELS, EvalConfig(loading=Loading(workers=0))
        ),
    ):
        with pytest.raises(ValueError, match="this is CLIP alone"):
            call()
    testing = EvalConfig(loading=Loading(workers=0), head="clip")
    label = LABELS.index(first[0][0])
    assert score_zero_shot(clips[0], "mine", [Video(videos[0], label)], LABELS, testing)["top1"] == 1
