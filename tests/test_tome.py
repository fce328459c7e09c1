"""Merge schedules."""

import pytest

from alt_fast.tome import merge_schedule


def test_one_r_for_every_layer() -> None:
    assert merge_schedule(8, 4) == [8, 8, 8, 8]


def test_one_r_per_layer() -> None:
    assert merge_schedule([4, 0, 2], 3) == [4, 0, 2]
    assert merge_schedule([4, 2], 2) == [4, 2]  # two ints are two layers, not (r, inflect)


def test_inflect_moves_merging_early_or_late() -> None:
    assert merge_schedule((8, 0.0), 3) == [8, 8, 8]
    assert merge_schedule((8, -1.0), 3) == [16, 8, 0]
    assert merge_schedule((8, 1.0), 3) == [0, 8, 16]
    assert merge_schedule((8, 0.5), 1) == [4]


@pytest.mark.parametrize(
    ("r", "message"), [(-1, ">= 0"), ([1, 2], "12 ints"), ((8, 1.5), "inflect"), ([-1] * 12, ">= 0")]
)
def test_bad_schedules(r: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge_schedule(r, 12)
