"""Records and what `apply` makes of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from alt_fast.data.augment import (
    MEAN_STD,
    ClipRecord,
    ColorJitter,
    apply,
    color_map,
    draw_record,
    is_blank,
    paint,
    view_record,
)
from alt_fast.data.config import AugmentConfig
from alt_fast.data.rng import Stream, generator
from alt_fast.data.sampling import segment_positions

PLAIN = ClipRecord((0.25, 0.75), (1.0, 1.0, 0.5, 0.5))
CONFIG = AugmentConfig()


def frames(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (2, height, width, 3), dtype=np.uint8)


def pixels(clip: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in MEAN_STD["imagenet"])
    return clip * std + mean


def test_one_position_per_segment() -> None:
    for seed in range(20):
        positions = segment_positions(8, np.random.default_rng(seed))
        assert [int(p * 8) for p in positions] == list(range(8))
    assert segment_positions(4) == (0.125, 0.375, 0.625, 0.875)


def test_records_are_a_function_of_seed_epoch_and_sample() -> None:
    def draw(seed: int, epoch: int, sample: int) -> ClipRecord:
        return draw_record(generator(seed, Stream.CLIP, epoch, sample), CONFIG, 8)

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(*key) for key in [(1, 2, 3), (0, 2, 3), (1, 3, 2), (1, 2, 4)]}) == 4


def test_draws_follow_the_configuration() -> None:
    records = [draw_record(np.random.default_rng(seed), CONFIG, 8) for seed in range(2000)]
    for share, expected in [
        (np.mean([r.flip for r in records]), 0.5),
        (np.mean([len(r.jitter) for r in records]), 0.8),
        (np.mean([r.gray for r in records]), 0.2),
    ]:
        assert abs(share - expected) < 0.05
    assert {r.crop[2:] for r in records} == {(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)}
    scales = CONFIG.scales
    assert {r.crop[:2] for r in records} == {
        (w, h) for i, w in enumerate(scales) for j, h in enumerate(scales) if abs(i - j) < 2
    }
    jitters = [jitter for r in records for jitter in r.jitter]
    assert all(0.6 <= f <= 1.4 for j in jitters for f in j.factors[:2])
    assert all(0.8 <= j.factors[2] <= 1.2 and -0.1 <= j.factors[3] <= 0.1 for j in jitters)


def test_full_size_crop_copies_pixels() -> None:
    source = frames(40, 60)
    clip = pixels(apply(PLAIN, source, (40, 40), CONFIG))
    expected = torch.from_numpy(source[:, :, 10:50]).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(clip, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("anchor", "rows", "columns"), [((0, 0), (0, 20), (0, 30)), ((1, 1), (20, 40), (30, 60))])
def test_crop_place(anchor: tuple[float, float], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    source = frames(40, 60)
    record = replace(PLAIN, crop=(0.75, 0.5, *anchor))
    clip = pixels(apply(record, source, (20, 30), CONFIG))
    expected = torch.from_numpy(source[:, slice(*rows), slice(*columns)].copy()).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(clip, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (37, 53), (500, 300)])
def test_any_size_goes_in(height: int, width: int) -> None:
    clip = apply(view_record(CONFIG, 2), frames(height, width), (24, 24), CONFIG)
    assert clip.shape == (2, 3, 24, 24)
    assert clip.isfinite().all()


def test_flip_gray_and_jitter_treat_all_frames_alike() -> None:
    source = np.repeat(frames()[:1], 2, axis=0)
    plain = apply(PLAIN, source, (32, 32), CONFIG)
    assert torch.equal(apply(replace(PLAIN, flip=True), source, (32, 32), CONFIG), plain.flip(-1))
    gray = pixels(apply(replace(PLAIN, gray=True), source, (32, 32), CONFIG))
    torch.testing.assert_close(gray[:, 0], gray[:, 1], rtol=0, atol=1e-6)
    jitter = ColorJitter((1.3, 0.7, 1.1, 0.05), (2, 0, 3, 1))
    colored = apply(replace(PLAIN, jitter=(jitter,)), source, (32, 32), CONFIG)
    assert not torch.allclose(colored, plain)
    assert torch.equal(colored[0], colored[1])


def test_jitter_order_matters() -> None:
    def jittered(order: tuple[int, ...]) -> torch.Tensor:
        return apply(replace(PLAIN, jitter=(ColorJitter((1.4, 0.6, 1.2, 0.1), order),)), frames(), (32, 32), CONFIG)

    assert not torch.allclose(jittered((0, 1, 2, 3)), jittered((1, 0, 2, 3)))


def test_jitter_per_frame_is_drawn_anew() -> None:
    config = AugmentConfig(jitter=1.0, jitter_per_frame=True)
    record = draw_record(np.random.default_rng(0), config, 3)
    assert len(set(record.jitter)) == 3
    assert len(draw_record(np.random.default_rng(0), AugmentConfig(jitter=1.0), 3).jitter) == 1
    clip = apply(replace(record, gray=False), np.repeat(frames()[:1], 3, axis=0), (32, 32), config)
    assert not torch.allclose(clip[0], clip[1])


@pytest.mark.parametrize(
    ("options", "message"), [({"flip": 1.5}, "flip"), ({"scales": []}, "scales"), ({"test_crop": 0.0}, "test_crop")]
)
def test_bad_configuration(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**options)


def steps(pixel: list[float], *which: tuple[int, float]) -> list[float]:
    """What a jitter of these steps, in this order, makes of one RGB pixel in [0, 1]."""
    factors = [1.0, 1.0, 1.0, 0.0]
    for step, factor in which:
        factors[step] = factor
    jitter = ColorJitter((factors[0], factors[1], factors[2], factors[3]), tuple(step for step, _ in which))
    weight, bias = color_map(replace(PLAIN, jitter=(jitter,)))[0].split((3, 1), dim=1)
    return (weight @ (255 * torch.tensor(pixel)) + bias[:, 0]).tolist()


def test_colour_steps() -> None:
    red, gray = [0.8, 0.2, 0.2], [0.4, 0.4, 0.4]
    luma = 0.299 * 0.8 + 0.701 * 0.2
    assert steps(red, (0, 1.5)) == pytest.approx([1.2, 0.3, 0.3], abs=1e-5)  # brightness
    assert steps(red, (1, 0.5)) == pytest.approx([0.65, 0.35, 0.35], abs=1e-5)  # contrast
    assert steps(red, (2, 0.0)) == pytest.approx([luma] * 3, abs=1e-5)  # saturation
    assert steps(gray, (3, 0.1)) == pytest.approx(gray, abs=1e-5)  # hue leaves gray
    turned = steps(red, (3, 1 / 3))
    assert turned != pytest.approx(red, abs=0.1)
    assert 0.299 * turned[0] + 0.587 * turned[1] + 0.114 * turned[2] == pytest.approx(luma, abs=1e-5)  # and luma
    assert steps(red, (0, 1.5), (1, 0.5)) == pytest.approx([0.85, 0.4, 0.4], abs=1e-5)
    assert steps(red, (1, 0.5), (0, 1.5)) == pytest.approx([0.975, 0.525, 0.525], abs=1e-5)


def test_colours_are_clipped_once_at_the_end() -> None:
    source = np.full((2, 8, 8, 3), 200, np.uint8)
    bright_then_dark = ColorJitter((2.0, 0.5, 1.0, 0.0), (0, 1, 2, 3))
    clip = pixels(apply(replace(PLAIN, jitter=(bright_then_dark,)), source, (8, 8), CONFIG))
    torch.testing.assert_close(clip, torch.full_like(clip, min(1, 200 / 255 + 0.25)), rtol=0, atol=1e-5)


def test_a_picture_of_one_colour_shows_nothing() -> None:
    """Whatever the colour, painted or not; a channel that varies by two levels or more does show something."""
    pixels = torch.tensor([0, 40, 200], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8).repeat(4, 1, 1, 1)
    pixels[1, 2, :4] += 3
    pixels[2, 2, :4] += 5
    pixels[3] += torch.arange(8, dtype=torch.uint8) * 10
    assert is_blank(pixels).tolist() == [True, True, False, False]
    config = AugmentConfig(normalize="clip")
    maps = color_map(view_record(config, 4))
    assert is_blank(paint(pixels[None], maps[None], config), "clip").tolist() == [[True, True, False, False]]
