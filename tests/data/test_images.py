"""Pictures of files, folders and videos, evenly taken, and drawn ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alt_fast.data.images import drawn_images, read_images
from alt_fast.errors import ArgumentError, FileError
from tests.conftest import VideoWriter


def grey(image: Image.Image) -> int:
    return round(float(np.asarray(image).mean()))


def test_a_folder_s_pictures_come_by_name_and_evenly(tmp_path: Path) -> None:
    for i in range(6):
        Image.new("L", (8, 8), 40 * i).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("none")
    assert [grey(image) for image in read_images([tmp_path], 9)] == [0, 40, 80, 120, 160, 200]
    assert [grey(image) for image in read_images([tmp_path], 3)] == [40, 120, 200]
    assert read_images([tmp_path / "2.png"], 1)[0].mode == "RGB"


def test_videos_give_frames_over_their_length(tmp_path: Path, write_video: VideoWriter) -> None:
    video = write_video("ramp.mp4", frames=30)  # frame i has grey level 20 + 6 i
    assert [grey(image) for image in read_images([video], 3)] == pytest.approx([20 + 6 * i for i in (5, 15, 25)], abs=2)
    Image.new("L", (8, 8), 0).save(tmp_path / "a.png")
    assert len(read_images([tmp_path], 4)) == 4


def test_videos_give_what_pictures_leave(tmp_path: Path, write_video: VideoWriter) -> None:
    """Of one picture and two videos a half of the rest each; nothing beside as many pictures as are wanted."""
    names = [write_video(f"{name}.mp4", frames=30) for name in "ab"]
    for i in range(2):
        Image.new("L", (8, 8), 250 + i).save(tmp_path / f"{i}.png")
        names.append(tmp_path / f"{i}.png")
    found = [grey(image) for image in read_images(names[:3], 5)]
    assert found == pytest.approx([250, *2 * [20 + 6 * 7.5, 20 + 6 * 22.5]], abs=4)
    assert [grey(image) for image in read_images(names, 2)] == [250, 251]


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_a_channel_are_eight(kind: str, tmp_path: Path) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(ramp).save(tmp_path / f"ramp.{kind}")
    found = np.asarray(read_images([tmp_path / f"ramp.{kind}"], 1)[0])
    assert np.array_equal(found, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, 2))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pictures_of_32_bits_a_channel_are_refused(dtype: Any, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), dtype)).save(tmp_path / "wide.tiff")
    with pytest.raises(FileError, match=r"cannot read image .*wide\.tiff: pictures have 8 or 16 bits a channel"):
        read_images([tmp_path / "wide.tiff"], 1)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=f"a picture or a video at least in {tmp_path}"):
        read_images([tmp_path], 4)
    with pytest.raises(FileError, match=r"cannot read image .*missing\.png"):
        read_images([tmp_path / "missing.png"], 4)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(FileError, match=r"cannot read image .*broken\.png"):
        read_images([tmp_path], 4)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)).save(tmp_path / "broken.png")
    first, second, rest = (tmp_path / "broken.png").read_bytes().split(b"IDAT", 2)
    (tmp_path / "broken.png").write_bytes(first + b"IDAT" + second + bytes(4) + rest)
    with pytest.raises(FileError, match=r"cannot read image .*broken\.png: broken PNG file"):
        read_images([tmp_path], 4)


def test_drawn_ones_are_always_the_same_and_all_different() -> None:
    first, again = drawn_images(3, 32), drawn_images(3, 32)
    assert [image.size for image in first] == [(32, 32)] * 3
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))
    assert len({image.tobytes() for image in first}) == 3
