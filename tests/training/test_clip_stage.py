"""What the tiny CLIP learns from: captioned frames with what their patches show, and the losses on it."""

import multiprocessing
import os
import pickle
import signal
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from alt_fast.corpus import Corpus
from alt_fast.data.motion_shapes import ALIGNED, LEVELS
from alt_fast.training.clip_stage import BACKGROUND_WEIGHT, CaptionedFrames, ClipStage, frame_loss, patch_loss
from alt_fast.training.config import PretrainConfig


@pytest.mark.parametrize("level", LEVELS)
def test_patches_show_what_is_there(level: int) -> None:
    """Patches of a thing have all that is true of it, evenly; those of neither nothing. Other processes agree."""
    corpus = Corpus.load(LEVELS[level].CORPUS).select(ALIGNED)
    frames = pickle.loads(pickle.dumps(CaptionedFrames(level, corpus, 0, 64, (8, 8), "imagenet")))
    units = list(frames.texts)
    assert units[: len(corpus)] == [entity.unit for entity in corpus.entities]
    texts = {entity.text for entity in corpus.entities}
    told = 0
    for index in range(12):
        pixels, caption, frame, patches = frames[index]
        captioned = LEVELS[level].captioned_frame(0, index, 64)
        assert pixels.shape == (3, 64, 64)
        assert patches.shape == (64, len(units))
        assert set(patches.sum(1).unique().tolist()) <= {0.0, 1.0} or torch.all((patches.sum(1) - 1).abs() < 1e-5)
        shown = {units[i] for i in patches.sum(0).nonzero()[:, 0].tolist()}
        true = {name for thing in captioned.things for names in thing.names.values() for name in names}
        assert shown <= true
        assert {units[i] for i in frame.nonzero()[:, 0].tolist()} == {*captioned.about, *captioned.layout}
        assert frame[: len(corpus)].sum() == pytest.approx(1)
        assert frame[len(corpus) :].sum() == pytest.approx(len(captioned.layout))
        told += caption in texts
    assert told > 0


def test_a_signal_to_all_processes_ends_no_batch() -> None:
    """As `timeout` sends it, and clusters: the main process finishes its step and writes a checkpoint."""
    corpus = Corpus.load(LEVELS[1].CORPUS).select(ALIGNED)
    stage = ClipStage.__new__(ClipStage)
    stage.frames = CaptionedFrames(1, corpus, 0, 64, (8, 8), "imagenet")
    stage.config, stage.workers = PretrainConfig(steps=12, batch_size=2), 1
    batches: Any = stage.batches(0)
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGTERM)
    assert len(list(batches)) == 11
    again: Any = stage.batches(0)
    next(again)
    assert multiprocessing.active_children()
    again.close()  # as the loop does whatever happens: at its end Python would wait for ever
    assert not multiprocessing.active_children()


def test_the_losses_are_cross_entropies() -> None:
    torch.manual_seed(0)
    texts, scale = F.normalize(torch.randn(5, 8), dim=-1), torch.tensor(7.0)
    image = F.normalize(torch.randn(2, 8), dim=-1)
    members = torch.tensor([[True, True, True, False, False], [False, False, False, True, True]])
    shown = torch.tensor([[0.5, 0, 0, 0, 0.5], [0, 0.25, 0.25, 0.5, 0]])
    expected = 0.0
    for token, target in zip(image, shown, strict=True):
        for own in (slice(0, 3), slice(3, 5)):
            expected -= (target[own] * (scale * texts[own] @ token).log_softmax(0)).sum().item() / 2
    assert frame_loss(image, texts, shown, scale, members).item() == pytest.approx(expected, rel=1e-5)

    patches = F.normalize(torch.randn(1, 4, 8), dim=-1)
    what = [[1], [0, 2], [3], []]  # two patches of things, one of a background, one of nothing for sure
    shown = torch.stack([F.one_hot(torch.tensor(own), 5).float().mean(0) if own else torch.zeros(5) for own in what])
    losses = [
        -(target * (scale * texts @ patch).log_softmax(0)).sum()
        for target, patch in zip(shown, patches[0], strict=True)
    ]
    expected = ((losses[0] + losses[1]) / 2 + BACKGROUND_WEIGHT * losses[2]).item()
    found = patch_loss(patches, texts, shown[None], scale, members[1])
    assert found.item() == pytest.approx(expected, rel=1e-5)
