"""Lists and class files as datasets are distributed."""

import json
from pathlib import Path

import pytest

from alt_fast.data.annotations import (
    AnnotationError,
    Video,
    keep_classes,
    name_key,
    read_classes,
    read_list,
    spoken,
)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def labelled(path: Path | str, classes: list[str] | None, **options: str) -> list[tuple[str, str]]:
    """(path relative to the list's folder, class name)"""
    videos, names = read_list(path, classes, **options)  # type: ignore[arg-type]
    return [(video.path.relative_to(Path(path).parent).as_posix(), names[video.label]) for video in videos]


def test_plain_list(tmp_path: Path) -> None:
    path = write(tmp_path / "train.txt", "a clip.mp4 1\nb/c.webm  0\n\nd.mp4 waving\n")
    expected = [("a clip.mp4", "waving"), ("b/c.webm", "eating"), ("d.mp4", "waving")]
    assert labelled(path, ["eating", "waving"]) == expected


def test_csv_list_and_root(tmp_path: Path) -> None:
    path = write(tmp_path / "lists" / "train.csv", 'path,label\n"a, b.mp4",eating\nc.mp4,0\n')
    videos, _ = read_list(path, ["eating"], root=tmp_path / "videos")
    assert [video.path for video in videos] == [tmp_path / "videos" / "a, b.mp4", tmp_path / "videos" / "c.mp4"]


def test_kinetics_csv(tmp_path: Path) -> None:
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    path = write(
        tmp_path / "train.csv",
        header + "testifying,---QUuC4vJs,84,94,train,0\neating spaghetti,--3ouPhoy2A,20,30,train,1\n",
    )
    write(tmp_path / "eating_spaghetti" / "--3ouPhoy2A_000020_000030.mp4", "")
    expected = [
        ("---QUuC4vJs_000084_000094.mp4", "testifying"),
        ("eating_spaghetti/--3ouPhoy2A_000020_000030.mp4", "eating spaghetti"),
    ]
    assert labelled(path, None) == expected
    assert read_list(path)[1] == ["eating spaghetti", "testifying"]


def test_kinetics_json(tmp_path: Path) -> None:
    entry = {"annotations": {"label": "surfing water", "segment": [4.0, 14.0]}, "duration": 10.0, "subset": "train"}
    path = write(tmp_path / "kinetics_train.json", json.dumps({"abc": entry}))
    assert labelled(path, None) == [("abc_000004_000014.mp4", "surfing water")]


def test_ucf101(tmp_path: Path) -> None:
    classes = read_classes(write(tmp_path / "classInd.txt", "1 ApplyEyeMakeup\r\n2 YoYo\r\n"))
    assert classes == ["apply eye makeup", "yo yo"]
    train = write(tmp_path / "trainlist01.txt", "ApplyEyeMakeup/v_g08.avi 1\nYoYo/v_g01.avi 2\n")
    assert labelled(train, classes) == [("ApplyEyeMakeup/v_g08.avi", "apply eye makeup"), ("YoYo/v_g01.avi", "yo yo")]
    test = write(tmp_path / "testlist01.txt", "YoYo/v_g02.avi\n")
    assert labelled(test, classes) == [("YoYo/v_g02.avi", "yo yo")]


def test_hmdb51(tmp_path: Path) -> None:
    write(tmp_path / "brush_hair_test_split1.txt", "April_09.avi 1 \nAtheism.avi 2 \nunused.avi 0 \n")
    write(tmp_path / "wave_test_split1.txt", "hello.avi 1 \n")
    write(tmp_path / "wave_test_split2.txt", "hello.avi 2 \n")
    pattern = tmp_path / "*_test_split1.txt"
    assert labelled(pattern, None) == [("brush_hair/April_09.avi", "brush hair"), ("wave/hello.avi", "wave")]
    classes = ["brush hair", "wave"]
    assert labelled(pattern, classes, subset="test") == [("brush_hair/Atheism.avi", "brush hair")]


def test_something_something(tmp_path: Path) -> None:
    labels = {"Putting something on a surface": "1", "Holding something": "0"}
    classes = read_classes(write(tmp_path / "labels.json", json.dumps(labels)))
    assert classes == ["Holding something", "Putting something on a surface"]
    entry = {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]}
    path = write(tmp_path / "train.json", json.dumps([entry]))
    assert labelled(path, classes) == [("78687.webm", "Holding something")]


def test_class_csv_orders_by_id(tmp_path: Path) -> None:
    assert read_classes(write(tmp_path / "classes.csv", "id,name\n1,b\n0,a\n")) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("apply_eye_makeup", "apply eye makeup"),
        ("YMCA", "YMCA"),
        ("Tai chi", "Tai chi"),
    ],
)
def test_spoken(name: str, text: str) -> None:
    assert spoken(name) == text


def test_case_and_punctuation_tell_no_classes_apart() -> None:
    assert name_key("Tai-Chi") == name_key("tai chi") == name_key("TaiChi")
    assert name_key("curling (sport)") != name_key("curling hair")
    assert name_key("cafe\u0301") == name_key("Caf\u00e9") != name_key("cafe")
    assert name_key("\u0915\u093f") != name_key("\u0915\u0940")  # the same letter of Devanagari, two vowels
    assert name_key("\uff34ai-chi") == name_key("tai chi")  # full width
    assert name_key("+") != name_key("-")
    videos = [Video(Path(f"{label}.mp4"), label) for label in (2, 0, 1, 2)]
    kept = keep_classes(videos, ["Yo Yo", "TaiChi", "high-jump"], ["HighJump", "yo_yo"], "names.txt")
    assert kept == ([Video(Path("2.mp4"), 1), Video(Path("0.mp4"), 0), Video(Path("2.mp4"), 1)], ["Yo Yo", "high-jump"])
    with pytest.raises(AnnotationError, match=r"names.txt: class 'luge' is not among the 2 classes of the list"):
        keep_classes(videos, ["a", "b"], ["a", "luge"], "names.txt")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "a.mp4 0\nb.mp4 7\n", "line 2: label '7' is not among the 2 classes"),
        ("a.txt", "a.mp4 0\na.mp4 1\n", "line 2: .*a.mp4 was listed before .*line 1"),
        ("a.txt", "a.mp4 0\nb.mp4\n", "line 2: expected `path label`"),
        ("a.txt", "", "names no videos"),
        ("a.csv", "file,label\na.mp4,0\n", "column 'path' is missing"),
        ("a.csv", "path,label\na.mp4,\n", "line 2: path, label must not be empty"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "3", "unexpected JSON"),
        ("a.json", '[{"label": "x"}]', "entry 1: expected an object with id"),
        ("a.json", '{"x": {"annotations": {}}}', "entry 'x'"),
        ("b.csv", "label,youtube_id,time_start,time_end\nx,y,a,b\n", "start and end must be seconds"),
    ],
)
def test_bad_lists(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(AnnotationError, match=message) as caught:
        read_list(path, ["eating", "waving"])
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.csv", "id,name\n0,a\n2,b\n", "consecutive"),
        ("c.csv", "id,name\n0,a\n0,b\n", "consecutive"),
        ("c.csv", "id,name\n0,a\n1,a\n", "'a' stands for several"),
        ("c.csv", "id,name\nx,a\n", "whole numbers"),
        ("c.csv", "name\na\n", "column 'id' is missing"),
        ("c.txt", "ApplyEyeMakeup\n", "expected `id,name`"),
    ],
)
def test_bad_class_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_classes(write(tmp_path / name, text))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"cannot read .*none.txt"):
        read_list(tmp_path / "none.txt", ["a"])
    with pytest.raises(AnnotationError, match="no file matches"):
        read_list(tmp_path / "*_test_split1.txt", ["a"])


def test_numbers_need_a_class_file(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="a class file is needed"):
        read_list(write(tmp_path / "a.txt", "a.mp4 0\n"))
