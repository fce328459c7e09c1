"""What is held out for testing: a share of every class, drawn from the seed, and whole sources."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alt_fast.data.annotations import Video
from alt_fast.data.split import source, split


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("YoYo/v_YoYo_g01_c02.avi", "v_YoYo_g01"),
        ("train/-a_b--1_000010_000020.mp4", "-a_b--1"),
        ("train-0.tar/ID_000010_000020.mp4", "ID"),
        ("train-0.tar/00000012/v_YoYo_g01_c02.avi", "v_YoYo_g01"),
        ("run/clip_01_02.mp4", "run/clip_01_02.mp4"),
        ("run/Screen_240115_101500.mp4", "run/Screen_240115_101500.mp4"),  # a date and a time
        ("run/Screen_100115_201500.mp4", "run/Screen_100115_201500.mp4"),
        ("run/g01.mp4", "run/g01.mp4"),
    ],
)
def test_sources_are_read_off_the_names_of_ucf101_and_kinetics(name: str, expected: str) -> None:
    assert source(Path(name)) == expected


def test_every_class_gives_its_share() -> None:
    videos = [
        Video(Path(f"{label}/{i}.mp4"), label) for label, count in ((0, 100), (1, 10), (2, 2)) for i in range(count)
    ]
    train, test = split(videos, 0.2, seed=0)
    assert Counter(video.label for video in test) == {0: 20, 1: 2, 2: 1}
    assert sorted(train + test, key=videos.index) == videos
    assert train == sorted(train, key=videos.index)


def test_other_seeds_hold_out_others_and_the_order_of_the_list_nothing() -> None:
    videos = [Video(Path(f"{i % 3}/{i}.mp4"), i % 3) for i in range(60)]
    drawn = [set(split(videos, 0.25, seed)[1]) for seed in range(4)]
    assert len({frozenset(test) for test in drawn}) == 4
    assert set(split(videos[::-1], 0.25, 2)[1]) == drawn[2]


def test_a_class_of_few_or_large_sources_is_tested_too() -> None:
    videos = [Video(Path(f"v_a_g{g:02}_c{c:02}.avi"), 0) for g in range(2) for c in range(10)]
    videos += [Video(Path(f"v_b_g01_c{c:02}.avi"), 1) for c in range(4)]
    train, test = split(videos, 0.2, seed=0)
    assert Counter(video.label for video in test) == {0: 10}
    assert Counter(video.label for video in train) == {0: 10, 1: 4}


_VIDEOS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=60)


@given(_VIDEOS, st.floats(0.05, 0.9), st.integers(0, 3))
def test_no_source_is_on_both_sides_and_no_class_is_lost(
    drawn: list[tuple[int, int]], test_size: float, seed: int
) -> None:
    videos = [Video(Path(f"{label}/id{group}_{i:06}_000010.mp4"), label) for i, (group, label) in enumerate(drawn)]
    train, test = split(videos, test_size, seed)
    assert sorted(train + test) == sorted(videos)
    assert not {source(video.path) for video in train} & {source(video.path) for video in test}
    assert {video.label for video in train} == {video.label for video in videos}
