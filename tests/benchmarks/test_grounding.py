"""What teaches patches: every term is the loss that it is named for, all see the same frames, none is repeated."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alt_fast.data.rng import Stream, generator
from alt_fast.model.text import encode_text
from alt_fast.training.clip_stage import Seen
from alt_fast.training.config import TrainConfig, parse
from alt_fast.training.run import clip_stage
from benchmarks import grounding
from benchmarks.grounding import TERMS, Distilled, LateInteraction, Nearest, Replayed, main
from tests.conftest import SMALL_JOB

SHORT = ("--pretrain.steps=3", "--pretrain.batch_size=6", "--data.workers=0")


def stage_of(kind: type[Replayed]) -> Replayed:
    config: TrainConfig = parse(["--config", "motion_shapes_clip", *SHORT])
    assert config.pretrain is not None
    stage = clip_stage(config, config.pretrain, torch.device("cpu"), kind)
    assert isinstance(stage, Replayed)
    stage.drawn = []
    return stage


def seen_by(stage: Replayed) -> Seen:
    """What `loss` gives to `grounding`, of the first batch."""
    found: list[Seen] = []

    def keep(seen: Seen) -> Tensor:
        found.append(seen)
        return torch.zeros(())

    stage.grounding = keep  # type: ignore[method-assign]
    stage.loss(next(iter(stage.batches(0))), 0)
    del stage.grounding
    return found[0]


def test_the_nearest_patch_stands_for_an_image() -> None:
    stage = stage_of(Nearest)
    seen = seen_by(stage)
    captions = [f"caption {i}" for i in range(6)]  # no two the same
    logits = torch.stack([torch.stack([(image @ caption).max() for caption in seen.caption]) for image in seen.patches])
    expected = [F.cross_entropy(seen.scale * part, torch.arange(6)) for part in (logits, logits.T)]
    torch.testing.assert_close(stage.grounding(seen._replace(captions=captions)), sum(expected) / 2)


def test_words_and_patches_meet_late() -> None:
    """FILIP's equations 3 to 5, a pair at a time; a text is its words up to its end."""
    stage = stage_of(LateInteraction)
    seen = seen_by(stage)
    clip = stage.module
    of_images, of_texts = torch.zeros(6, 6), torch.zeros(6, 6)
    for t, tokens in enumerate(seen.tokens):
        length = int(tokens.argmax()) + 1
        hidden = clip.token_embedding(tokens[:length]) + clip.positional_embedding[:length]
        hidden = clip.transformer(hidden[None], attn_mask=clip.attn_mask[:length, :length])[0]
        words = F.normalize(clip.ln_final(hidden) @ clip.text_projection, dim=-1)
        torch.testing.assert_close(words[-1], F.normalize(encode_text(clip, tokens[None])[0], dim=-1))
        for i, patches in enumerate(seen.patches):
            near = patches @ words.T
            of_images[i, t], of_texts[t, i] = near.amax(1).mean(), near.amax(0).mean()
    captions = [f"caption {i}" for i in range(6)]
    expected = [F.cross_entropy(seen.scale * part, torch.arange(6)) for part in (of_images, of_texts)]
    torch.testing.assert_close(stage.grounding(seen._replace(captions=captions)), sum(expected) / 2)


def test_a_box_is_taught_by_what_is_cut_out_there() -> None:
    stage = stage_of(Distilled)
    seen = seen_by(stage)
    rows, columns = stage.module.visual.grid_size
    rng = generator(stage.seed, Stream.CAPTION, 3, 0)
    top, left = (int(rng.integers(side - round(side / 2) + 1)) for side in (rows, columns))
    patch, inside = stage.module.visual.patch_size[0], torch.zeros(rows, columns, dtype=torch.bool)
    inside[top : top + round(rows / 2), left : left + round(columns / 2)] = True
    cut = seen.pixels[..., inside.repeat_interleave(patch, 0).repeat_interleave(patch, 1)]
    cut = cut.unflatten(-1, (patch * round(rows / 2), patch * round(columns / 2)))
    taught = stage.module.visual(F.interpolate(cut, seen.pixels.shape[2:], mode="bilinear", antialias=True))[0]
    where = inside.flatten()[None, :, None]
    right = torch.where(where, F.normalize(taught, dim=-1)[:, None], torch.randn_like(seen.patches))
    assert stage.grounding(seen._replace(patches=right)).item() == pytest.approx(0, abs=1e-5)
    assert stage.grounding(seen._replace(patches=-right)).item() == pytest.approx(2, abs=1e-5)
    stage.grounding(seen).backward()
    assert stage.module.visual.proj.grad is not None


def test_all_terms_see_the_same_frames() -> None:
    """Also one that goes on in the middle."""
    first, second = stage_of(Replayed), stage_of(Nearest)
    second.drawn = drawn = first.drawn
    assert len(list(first.batches(2))) == 1
    own = list(second.batches(0))
    assert [id(batch) for batch in own] == [id(batch) for batch in drawn]
    plain = list(super(Replayed, stage_of(Replayed)).batches(0))
    for (pixels, captions, *shown), (others, texts, *more) in zip(own, plain, strict=True):
        assert captions == texts
        torch.testing.assert_close([pixels, *shown], [others, *more], rtol=0, atol=0)


def test_it_trains_every_term_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    command = ["--seeds", "1", "--out", str(out), "--runs", str(tmp_path / "runs"), "--", *SMALL_JOB, *SHORT]
    assert main(command) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["seed"], row["term"]) for row in rows] == [(0, term) for term in TERMS]
    assert len({json.dumps(row["found"]) for row in rows}) > 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| term | frame token: all | ")
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {words}" for _, words in TERMS.values()]
    trained: list[str] = []

    def counted(stage: Replayed, folder: Path, saving: object) -> None:
        assert not list(folder.iterdir())  # of no other --out and no other options
        trained.append(folder.name)

    monkeypatch.setattr(grounding, "fit", counted)
    with out.open("a") as file:
        file.write('{"provenance": {}}\n')  # of other experiments
    assert main(command) == 0
    assert trained == []  # again
    assert capsys.readouterr().out.splitlines() == lines
    assert main(["--terms", "late", *command, "--pretrain.lr=1e-4"]) == 0
    out.unlink()
    assert main(["--terms", "late", *command]) == 0
    assert trained == ["late", "late"]


def test_a_job_without_a_term_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--config", "motion_shapes"], ["--", "--pretrain.grounding=0"]):
        assert main(["--out", str(tmp_path / "rows.jsonl"), "--runs", str(tmp_path), *options]) == 2
        assert "pretrains no grounded tower" in capsys.readouterr().err
