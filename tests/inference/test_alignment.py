"""The probe of the alignment finds what was built into a model."""

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alt_fast.data.annotations import Video, read_list
from alt_fast.data.augment import view_record
from alt_fast.data.config import Loading
from alt_fast.data.motion_shapes.drawing import owners
from alt_fast.data.motion_shapes.truth import things_in
from alt_fast.evaluate import main
from alt_fast.inference.alignment import is_used, probe_alignment, region_of, use_text
from alt_fast.inference.predict import load_video
from alt_fast.inference.scoring import EvalConfig
from alt_fast.inference.trained import TrainedModel, load
from alt_fast.model.alt import ALT
from alt_fast.model.encoder import Regions

TESTING = EvalConfig(6, loading=Loading("torch", 0))


@pytest.fixture
def trained(trained_run: Path) -> TrainedModel:
    return load(trained_run)


@pytest.fixture
def videos(trained_run: Path, trained: TrainedModel) -> list[Video]:
    return read_list(trained_run.parent / "data" / "test.txt", trained.classes)[0]


def decide_by(trained: TrainedModel, videos: list[Video], source: str, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Make a model that answers by its queries, or by its frames, alone; returns classes, the answers of the videos.

    An untrained tower sees the same in all videos: each gets random tokens of its own.
    """
    model = trained.model

    def encode(video: Tensor, schedule: object = None) -> Regions:
        generators = [torch.Generator().manual_seed(int(1e4 * clip.abs().double().mean())) for clip in video]
        tokens = torch.stack([torch.randn(2, 8, 64, generator=generator) for generator in generators])
        return Regions(tokens, torch.ones(len(video), 2, 8), torch.ones(len(video), 2, 37).int())

    def answer(pooled: Tensor, frames: Tensor) -> Tensor:
        return (pooled if source == "queries" else frames).flatten(1)

    monkeypatch.setattr(model, "encode", encode)
    monkeypatch.setattr(model, "answer", answer)
    with torch.inference_mode():
        answers = [model.describe(load_video(video.path, trained.spec)) for video in videos]
    return F.normalize(torch.cat(answers), dim=-1)


@pytest.mark.parametrize("source", ["queries", "frames"])
def test_it_tells_a_model_that_uses_its_queries_from_one_that_does_not(
    source: str, trained: TrainedModel, videos: list[Video], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _ = read_list(videos[0].path.parent.parent / "train.txt", trained.classes)
    videos = [Video(video.path, number) for number, video in enumerate([*videos, *train][:48])]
    classes = decide_by(trained, videos, source, monkeypatch)
    found = probe_alignment(trained.model, trained.spec, videos, classes, TESTING)
    assert found["videos"] == 48
    assert found["top1"] > 0.9
    if source == "queries":
        assert found["used"] is True
        assert found["shuffled_top1"] < 0.5
        assert found["mean_query_top1"] == pytest.approx(1 / 48)
        assert max(found["permuted_entities_top1"], found["random_entities_top1"]) < found["top1"]
    else:
        assert found["used"] is False
        same = {found[f"{name}_top1"] for name in ("shuffled", "mean_query", "permuted_entities", "random_entities")}
        assert same == {found["top1"]}
        few = probe_alignment(trained.model, trained.spec, videos[:12], classes[:12], TESTING)
        assert few["used"] is None


@pytest.mark.parametrize(
    ("count", "lost", "won", "used"),
    [
        (20, 0, 0, None),
        (60, 0, 0, False),
        (20, 1, 0, None),  # one video is 5 % of them
        (60, 1, 0, None),
        (288, 2, 0, False),
        (60, 5, 2, None),
        (60, 8, 0, True),
        (640, 30, 3, None),  # surely something, but less than what counts
        (640, 60, 3, True),
        (640, 0, 60, False),
    ],
)
def test_a_few_videos_do_not_decide_whether_queries_are_used(
    count: int, lost: int, won: int, used: bool | None
) -> None:
    own, shuffled = torch.ones(count).bool(), torch.ones(count).bool()
    shuffled[:lost], own[lost : lost + won] = False, False
    found, error = is_used(own, shuffled, 1 / 40)
    assert found is used
    weights, values = np.array([lost + 0.5, won + 0.5, count - lost - won + 1]), np.array([1, -1, 0])
    mean = np.average(values, weights=weights)
    assert error == pytest.approx(np.sqrt(np.average((values - mean) ** 2, weights=weights) / weights.sum()))


def test_numbers_of_the_choice(trained: TrainedModel, videos: list[Video]) -> None:
    found = probe_alignment(trained.model, trained.spec, videos, trained.embed(trained.classes), TESTING)
    model = trained.model
    with torch.inference_mode():
        tokens = torch.cat([model.encode(load_video(video.path, trained.spec)).tokens for video in videos])
        unit, known = (F.normalize(x, dim=-1) for x in (tokens, model.alignment.entities))
        cosine = unit @ known.T
        choice = (cosine / model.config.tau).softmax(-1)
        share = cosine.argmax(-1).flatten().bincount(minlength=len(known)) / cosine[..., 0].numel()
    best = cosine.topk(2, dim=-1).values
    assert found["entities"] == len(known)
    assert found["entities_used"] == (share > 0).sum()
    expected = {
        "certainty": choice.amax(-1).mean(),
        "entropy": torch.special.entr(choice).sum(-1).mean() / torch.tensor(float(len(known))).log(),
        "margin": (best[..., 0] - best[..., 1]).mean(),
        "entities_effective": torch.special.entr(share).sum().exp(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(
        {k: v.item() for k, v in expected.items()}, rel=1e-4
    )


def test_numbers_of_the_choice_are_those_of_the_tokens_that_align(
    trained: TrainedModel, videos: list[Video], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without regions the frame token alone does."""
    model = trained.model
    monkeypatch.setattr(model.alignment, "regions", False)
    found = probe_alignment(model, trained.spec, videos, trained.embed(trained.classes), TESTING)
    with torch.inference_mode():
        frames = torch.cat([model.encode(load_video(video.path, trained.spec)).tokens[:, :, 0] for video in videos])
        cosine = F.normalize(frames, dim=-1) @ F.normalize(model.alignment.entities, dim=-1).T
    assert found["certainty"] == pytest.approx((cosine / model.config.tau).softmax(-1).amax(-1).mean().item(), rel=1e-4)
    assert found["margin"] == pytest.approx(cosine.topk(2, -1).values.diff(dim=-1).neg().mean().item(), rel=1e-4)
    assert "frame_accuracy" in found
    assert "region_accuracy" not in found


def test_a_model_at_chance_is_said_to_be_there() -> None:
    """However many the videos: of queries that cannot help or hurt nothing can be told."""
    found: dict[str, Any] = {"videos": 1000, "chance": 0.025, "used": None, "shuffled_error": 0.007}
    found |= {"top1": 0.026, "shuffled_top1": 0.025, "mean_query_top1": 0.025}
    assert use_text(found).startswith(
        "Top-1 is not surely above chance, 2.5 %: what queries are worth cannot be told: "
    )
    few = "1000 videos are too few to tell whether the model uses its queries: "
    assert use_text(found | {"top1": 0.05}).startswith(few)
    del found["chance"]  # as files of earlier versions
    assert use_text(found).startswith(few)


def test_tokens_that_show_the_truth_are_right(
    trained: TrainedModel, videos: list[Video], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens made of the entity that is true of each patch: every region is right, and of the frame's own, one."""
    model, spec = trained.model, trained.spec
    model.encoder.set_r(0)
    units = [entity.unit for entity in model.corpus.entities]
    record = view_record(spec.augment, spec.num_frames)
    by_video = []
    for video in videos:
        frames = []
        for things in things_in(video.path, record, spec.size) or ():
            first = [units.index(min(chain(*thing.names.values()))) for thing in things]
            owner = owners(things, (8, 8)).ravel()
            frames.append([first[-1], *(first[max(0, int(place))] for place in owner)])
        by_video.append(frames)
    true = torch.tensor(by_video)
    seen = iter(true.split(TESTING.batch_size))
    entities = model.alignment.entities

    def encode(frames: Tensor, *_: object) -> Regions:
        index = (next(seen) if len(frames) > spec.num_frames else true[:1]).flatten(0, 1) % len(entities)
        source = torch.arange(37).expand(len(index), -1).int()
        return Regions(entities[index], torch.ones(len(index), 37), source)

    monkeypatch.setattr(model.encoder, "forward", encode)
    found = probe_alignment(model, spec, videos, trained.embed(trained.classes), TESTING)
    assert found["frame_accuracy"]["all"] == 1
    assert found["region_accuracy"]["all"] > 0.95  # where nothing fills a quarter of a patch, none is right
    assert set(found["region_accuracy"]) == {"all", "object", "body", "scene"}
    model.use_corpus(None, ["scene"])
    seen, true = iter(true.split(TESTING.batch_size)), torch.zeros_like(true)
    entities = model.alignment.entities
    found = probe_alignment(model, spec, videos, trained.embed(trained.classes), TESTING)
    assert set(found["region_accuracy"]) == {"all", "scene"}  # no entity names an object, so none is missed


def test_the_region_of_a_thing_has_most_of_its_pixels() -> None:
    mask = np.zeros((4, 6), np.float32)  # patches of 2 x 3: the thing fills the second, and half of the third
    mask[:2, 3:], mask[2, :3] = 1, 1
    assert region_of(mask, (2, 3), torch.tensor([1, 2, 3, 1])) == 2
    assert region_of(mask, (2, 3), torch.tensor([3, 1, 1, 2])) == 1
    assert region_of(mask, (2, 3), torch.tensor([2, 1, 2, 2])) == 1
    assert region_of(0 * mask, (2, 3), torch.tensor([1, 2, 3, 1])) is None


def test_long_lists_are_sampled_whatever_their_order(
    trained: TrainedModel, videos: list[Video], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list whose classes take turns, too; every k-th of it would leave some out."""
    seen: list[int] = []

    def align(model: object, spec: object, videos: list[Video], *others: object) -> tuple[None, Tensor]:
        seen.extend(video.label for video in videos)
        return None, torch.zeros(len(videos), dtype=torch.bool)

    monkeypatch.setattr("alt_fast.inference.alignment._align", align)
    monkeypatch.setattr("alt_fast.inference.alignment.MOST_VIDEOS", 100)
    turns = [Video(videos[0].path, number % 10) for number in range(200)]
    assert probe_alignment(trained.model, trained.spec, turns, torch.eye(10), TESTING) == {"videos": 0}
    assert len(seen) == 100
    assert set(seen) == set(range(10))


def test_lists_of_other_videos_have_no_truth(trained: TrainedModel, videos: list[Video], tmp_path: Path) -> None:
    (tmp_path / "a.webm").write_bytes(videos[0].path.read_bytes())
    (tmp_path / "b.webm").write_bytes(b"no video")
    own = [Video(tmp_path / "a.webm", 0), Video(tmp_path / "b.webm", 1)]
    found = probe_alignment(trained.model, trained.spec, own, trained.embed(trained.classes), TESTING)
    assert found["videos"] == 1  # what cannot be read is left out
    assert "region_accuracy" not in found
    assert probe_alignment(trained.model, trained.spec, own[1:], trained.embed(["x"]), TESTING) == {"videos": 0}
    stray = videos[0].path.parent / "mine.webm"  # among the dataset's, but none of them
    stray.write_bytes(videos[0].path.read_bytes())
    try:
        stranger = probe_alignment(
            trained.model, trained.spec, [Video(stray, 0)], trained.embed(trained.classes), TESTING
        )
    finally:
        stray.unlink()
    assert "region_accuracy" not in stranger


@pytest.mark.parametrize("query", ["frame", "learned"])
def test_models_that_align_nothing_are_asked_for_their_queries_alone(
    query: str, trained: TrainedModel, videos: list[Video]
) -> None:
    model = ALT(replace(trained.model.config, query=query), None)  # type: ignore[arg-type]
    found = probe_alignment(model, trained.spec, videos[:6], trained.embed(trained.classes), TESTING)
    decided = {"used", "shuffled_error"} if query == "frame" else set()  # learned ones are the same for all videos
    assert set(found) == {"videos", "chance", "top1", "shuffled_top1", "mean_query_top1"} | decided


def test_the_command_prints_it(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(trained_run), "--probe-alignment", "--workers", "0"]) == 0
    out = capsys.readouterr().out
    metrics = json.loads((trained_run / "metrics.json").read_text())["alignment"]
    assert f"shuffled top1            {metrics['shuffled_top1']:.1%}\n" in out
    assert f"region accuracy          all {metrics['region_accuracy']['all']:.1%}, object " in out
    assert f"entities effective       {metrics['entities_effective']:.3g}\n" in out
    said = use_text(metrics)
    assert said.startswith("Top-1 is not surely above chance, 2.8 %: what queries are worth cannot be told: on 36 ")
    assert f"test.txt: {said}\n" in out
    assert "\n  used  " not in out
    assert f"\n{said}\n" in (trained_run / "README.md").read_text()
