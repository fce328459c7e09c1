"""Mixup, CutMix and smoothing: against their definitions, and as functions of the number alone."""

import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target

from alt_fast.training.mixing import Mixing, cut_box

VIDEO = torch.randn(6, 3, 3, 20, 30)
LABEL = torch.tensor([0, 1, 2, 3, 4, 0])


def share_of(target: torch.Tensor) -> float:
    """How much of the first clip is its own, from its target: labels 0 and 0 pair, so of the second, 1 and 4."""
    return target[1, 1].item()


@pytest.mark.parametrize("number", range(8))
def test_mixup(number: int) -> None:
    video, target = Mixing(5, 0.8, 0.0, 0.5, 0.0, seed=3)(VIDEO, LABEL, number)
    share = share_of(target)
    torch.testing.assert_close(video, VIDEO * share + VIDEO.flip(0) * (1 - share))
    torch.testing.assert_close(target, mixup_target(LABEL, 5, share, smoothing=0.0))


@pytest.mark.parametrize("number", range(8))
def test_cutmix(number: int) -> None:
    video, target = Mixing(5, 0.0, 1.0, 0.5, 0.1, seed=3)(VIDEO, LABEL, number)
    cut = (video != VIDEO)[1, 0, 0]
    rows, columns = cut.any(1).nonzero()[:, 0], cut.any(0).nonzero()[:, 0]
    box = cut[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else cut[:0]
    assert box.all()
    assert torch.equal(video[..., cut], VIDEO.flip(0)[..., cut])
    share = 1 - box.numel() / (20 * 30)
    torch.testing.assert_close(target, mixup_target(LABEL, 5, share, smoothing=0.1))


def test_it_is_a_function_of_seed_and_number_and_leaves_numpy_s_generator_alone() -> None:
    mix = Mixing(5, 0.8, 1.0, 0.5, 0.1, seed=0)
    before = np.random.get_state(legacy=True)
    first, again, other = mix(VIDEO, LABEL, 7), mix(VIDEO, LABEL, 7), mix(VIDEO, LABEL, 8)
    assert str(np.random.get_state(legacy=True)) == str(before)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], Mixing(5, 0.8, 1.0, 0.5, 0.1, seed=1)(VIDEO, LABEL, 7)[0])


def test_both_are_drawn_as_often_as_asked() -> None:
    mix = Mixing(5, 0.8, 1.0, 0.25, 0.0, seed=0)
    marked = torch.stack([torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)])
    cut = sum(bool(((video := mix(marked, LABEL[:2], n)[0]) == video.round()).all()) for n in range(400))
    assert 60 < cut < 140


def test_without_either_only_labels_are_smoothed() -> None:
    video, target = Mixing(5, 0.0, 0.0, 0.5, 0.1, seed=0)(VIDEO, LABEL, 0)
    assert video is VIDEO
    assert target[0].tolist() == pytest.approx([0.92, 0.02, 0.02, 0.02, 0.02])


def test_boxes_cover_what_they_should() -> None:
    rng = np.random.default_rng(0)
    boxes = [cut_box(rng, 0.75, 40, 60) for _ in range(500)]
    inside = [b for b in boxes if b[0] > 0 and b[1] < 40 and b[2] > 0 and b[3] < 60]
    assert len(inside) > 50
    assert {(bottom - top, right - left) for top, bottom, left, right in inside} == {(20, 30)}
    assert all(0 <= t <= b <= 40 and 0 <= left <= right <= 60 for t, b, left, right in boxes)
