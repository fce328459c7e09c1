"""Lists and class files as datasets are distributed."""

import codecs
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alt_fast.data.annotations import (
    Video,
    keep_classes,
    name_key,
    read_classes,
    read_labels,
    read_list,
    read_paths,
    spoken,
    write_list,
)
from alt_fast.data.tables import AnnotationError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def labelled(path: Path | str, classes: list[str] | Path | None, **options: str) -> list[tuple[str, str]]:
    """(path relative to the list's folder, class name)"""
    videos, names = read_list(path, classes, **options)  # type: ignore[arg-type]
    return [(video.path.relative_to(Path(path).parent).as_posix(), names[video.label]) for video in videos]


def test_plain_list(tmp_path: Path) -> None:
    path = write(tmp_path / "train.txt", "a clip.mp4 1\nb/c.webm  0\n\nd.mp4 waving\n")
    expected = [("a clip.mp4", "waving"), ("b/c.webm", "eating"), ("d.mp4", "waving")]
    assert labelled(path, ["eating", "waving"]) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-marked"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path,label\na é.mp4,1\nb/c.webm,eating\n"),
        ("a.csv", "Path;Label;note\r\na é.mp4;1;\r\nb/c.webm;eating;good, I think\r\n"),
        ("a.csv", "sep=;\r\npath;label\r\na é.mp4;1\r\nb/c.webm;eating\r\n"),
        ("a.tsv", "# two clips\npath\tlabel\n\na é.mp4\t1\n# the second:\nb/c.webm\teating\n"),
        ("a.csv", "a é.mp4,1\nb/c.webm,eating\n"),
        ("a.csv", "a é.mp4, 1\n b/c.webm ,eating\n"),
        ("a.csv", "a é.mp4 1\nb/c.webm eating\n"),
        ("a.csv", "path label\na é.mp4 1\nb/c.webm eating\n"),
        ("a.csv", '"a é.mp4";1\n"b/c.webm";eating\n'),
        ("a.txt", "a é.mp4;1\nb/c.webm;eating\n"),
        ("a.txt", "a é.mp4\t1\nb/c.webm\teating\n"),
        ("a.txt", "#path label\na é.mp4 1\n  # a comment\nb/c.webm\teating\n"),
        ("a.txt", "path,label\na é.mp4,1\nb/c.webm,eating\n"),
    ],
)
def test_lists_as_people_write_them(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    content = b"\xfe\xff" + text.encode("utf-16-be") if encoding.endswith("marked") else text.encode(encoding)
    (tmp_path / name).write_bytes(content)
    assert labelled(tmp_path / name, ["eating", "waving"]) == [("a é.mp4", "waving"), ("b/c.webm", "eating")]


def test_class_files_as_people_write_them(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_bytes("id;name\r\n0;küssen, lang\r\n1;b\r\n".encode("utf-16"))
    assert read_classes(tmp_path / "classes.csv") == ["küssen, lang", "b"]
    (tmp_path / "classInd.txt").write_text("# classes\n1 YoYo\n", encoding="utf-8-sig")
    assert read_classes(tmp_path / "classInd.txt") == ["yo yo"]
    (tmp_path / "labels.json").write_text('{"Holding": "0"}', encoding="utf-8-sig")
    assert read_classes(tmp_path / "labels.json") == ["Holding"]


def test_a_comma_in_a_name_is_no_delimiter(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "b, c.mp4 1\nd; e.MOV 0\nwithout suffix, f 1\n")
    names = [("b, c.mp4", "waving"), ("d; e.MOV", "eating"), ("without suffix, f", "waving")]
    assert labelled(path, ["eating", "waving"]) == names
    unknown = write(tmp_path / "unknown.csv", "a.gif,playing guitar\nb.gif,1\n")
    assert labelled(unknown, ["x", "playing guitar"]) == [("a.gif", "playing guitar"), ("b.gif", "playing guitar")]


_CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)
_NAME = _CELL.filter(lambda name: name not in (".", "..") and "/" not in name and ".tar" not in name)


@given(
    st.lists(st.tuples(_NAME, st.integers(0, 2)), min_size=1, unique_by=lambda row: row[0]),
    st.lists(_CELL, min_size=3, max_size=3, unique=True),
)
def test_our_own_lists_read_back_whatever_the_names(rows: list[tuple[str, int]], classes: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.csv"
        videos = [Video(Path(folder) / name, label) for name, label in rows]
        write_list(path, videos, classes)
        assert read_list(path, classes) == (videos, classes)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.txt", "a clip.mp4 0\nb/c.webm 1\n"),
        ("train.csv", "a clip.mp4;eating\nb/c.webm;waving\n"),
        ("trainlist01.txt", "Eating/v_g08.avi 1\nWaving/v_g01.avi 2\n"),
        ("testlist01.txt", "Eating/v_g02.avi\nWaving/v_g02.avi\n"),
        ("kinetics.csv", "label,youtube_id,time_start,time_end\nwaving,abc,4,14\neating,abd,0,10\n"),
        ("kinetics.json", '{"abc": {"annotations": {"label": "waving", "segment": [4, 14]}}}'),
        ("ssv2.json", '[{"id": "7", "template": "[waving]"}]'),
        ("waving_test_split1.txt", "hello.avi 1\n"),
    ],
)
def test_every_form_reads_back_as_our_own(tmp_path: Path, name: str, text: str) -> None:
    path = write(tmp_path / name, text)
    given = tmp_path / "*_test_split1.txt" if "split" in name else path
    classes = ["eating", "waving"]
    videos, _ = read_list(given, classes)
    write_list(tmp_path / "elsewhere.csv", videos, classes)
    assert read_list(tmp_path / "elsewhere.csv", classes, root="ignored") == (videos, classes)


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


def test_numbered_ucf101_without_a_class_file(tmp_path: Path) -> None:
    lines = "YoYo/v_g01.avi 2\nApplyEyeMakeup/v_g08.avi 1\nYoYo/v_g02.avi 2\n"
    train = write(tmp_path / "trainlist01.txt", lines)
    videos, classes = read_list(train)
    assert classes == ["apply eye makeup", "yo yo"]
    assert [video.label for video in videos] == [1, 0, 1]
    test = write(tmp_path / "testlist01.txt", "YoYo/v_g02.avi\n")
    assert labelled(test, classes) == [("YoYo/v_g02.avi", "yo yo")]


@pytest.mark.parametrize("last", ["Surfing/v_g02.avi 2", "YoYo/v_g02.avi 3"])
def test_numbers_that_do_not_fit_their_folders_need_a_class_file(tmp_path: Path, last: str) -> None:
    path = write(tmp_path / "trainlist01.txt", f"YoYo/v_g01.avi 2\n{last}\n")
    with pytest.raises(AnnotationError, match="line 2: class . is in the folder .* a class file is needed"):
        read_list(path)


def test_numbers_begin_where_the_class_file_does(tmp_path: Path) -> None:
    """Whatever the list is called, and whatever of its numbers occur."""
    (tmp_path / "some.txt").write_text("a.avi 1\nb.avi 2\n")
    for first, expected in ((0, [1, 2]), (1, [0, 1])):
        classes = tmp_path / f"from{first}.csv"
        classes.write_text("id,name\n" + "".join(f"{first + k},{name}\n" for k, name in enumerate("xyz")))
        videos, names = read_list(tmp_path / "some.txt", classes)
        assert [video.label for video in videos] == expected
        assert names == ["x", "y", "z"]


def test_numbers_beside_names_begin_where_the_class_file_does(tmp_path: Path) -> None:
    """One label that is a name says nothing of the others."""
    classes = write(tmp_path / "classInd.txt", "1 x\n2 y\n3 z\n")
    mixed = write(tmp_path / "mixed.txt", "a.avi 1\nb.avi 2\nc.avi z\n")
    assert labelled(mixed, classes) == [("a.avi", "x"), ("b.avi", "y"), ("c.avi", "z")]
    from_zero = write(tmp_path / "classes.csv", "id,name\n0,x\n1,y\n2,z\n")
    assert labelled(mixed, from_zero) == [("a.avi", "y"), ("b.avi", "z"), ("c.avi", "z")]
    named = write(tmp_path / "named.csv", "id,name\n1,3\n2,x\n3,y\n")  # one class is called 3
    assert labelled(write(tmp_path / "list.txt", "a.avi 3\nb.avi 2\nc.avi y\n"), named) == [
        ("a.avi", "3"),
        ("b.avi", "x"),
        ("c.avi", "y"),
    ]


def test_among_names_numbers_begin_at_zero_if_one_of_them_does(tmp_path: Path) -> None:
    """Else nothing says where they begin, and every label could be another."""
    zero = write(tmp_path / "zero.txt", "a.avi 0\nb.avi 2\n")
    assert [video.label for video in read_list(zero, ["x", "y", "z"])[0]] == [0, 2]
    for lines in ("a.avi 1\nb.avi 2\n", "a.avi 1\nb.avi 3\n"):
        with pytest.raises(AnnotationError, match="may count from 0 or from 1, and a class file is needed to tell"):
            read_list(write(tmp_path / "one.txt", lines), ["x", "y", "z"])
    named = write(tmp_path / "named.txt", "a.avi 1\nb.avi 2\n")  # by numbers that are names
    assert [video.label for video in read_list(named, ["1", "2"])[0]] == [0, 1]


def test_numbers_that_are_ids_are_none_of_the_names(tmp_path: Path) -> None:
    """Where classes are called by numbers, all labels are the one or the other: names, where they can be."""
    classes = write(tmp_path / "classes.csv", "id,name\n0,1\n1,2\n2,3\n")
    for labels, expected in (
        *(((0, 1, 2), ["1", "2", "3"]), ((1, 2, 3), ["1", "2", "3"])),
        *(((3, 3), ["3", "3"]), ((1, 2), ["1", "2"]), ((0, 2), ["1", "3"])),
    ):
        path = write(tmp_path / "list.txt", "".join(f"{i}.mp4 {label}\n" for i, label in enumerate(labels)))
        assert [label for _, label in labelled(path, classes)] == expected
    same = write(tmp_path / "same.csv", "id,name\n0,0\n1,1\n")
    assert labelled(write(tmp_path / "list.txt", "0.mp4 1\n1.mp4 0\n"), same) == [("0.mp4", "1"), ("1.mp4", "0")]


def test_suffixes_are_read_in_any_case(tmp_path: Path) -> None:
    assert read_classes(write(tmp_path / "C.CSV", "id,name\n0,a\n1,b\n")) == ["a", "b"]
    assert read_classes(write(tmp_path / "C.JSON", '{"a": 0, "b": 1}')) == ["a", "b"]


def test_a_test_list_of_ucf101_may_have_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "testlist01.txt", "Waving/v_Waving_g01_c01.avi 2\nJumping/v_Jumping_g01_c01.avi 1\n")
    classes = write(tmp_path / "classInd.txt", "1 Jumping\n2 Waving\n")
    assert labelled(path, classes) == [
        ("Waving/v_Waving_g01_c01.avi", "waving"),
        ("Jumping/v_Jumping_g01_c01.avi", "jumping"),
    ]


def test_a_file_in_two_spellings_is_listed_twice(tmp_path: Path) -> None:
    for other in (tmp_path / "a.mp4", "sub/../a.mp4", "./a.mp4"):
        path = write(tmp_path / "list.txt", f"a.mp4 wave\n{other} wave\n")
        with pytest.raises(AnnotationError, match=r"line 2: .*a\.mp4 was listed before \(.*line 1\)"):
            read_list(path)


def test_quoted_paths_among_blanks(tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", '"a b.webm" 0\nc.webm 1\n"d.webm" 1\n')
    assert labelled(path, ["x", "y"]) == [("a b.webm", "x"), ("c.webm", "y"), ("d.webm", "y")]


def test_labels_that_would_be_told_alike_are_not_one_class(tmp_path: Path) -> None:
    rows = "a.mp4,jump_up\nb.mp4,walk\nc.mp4,JumpUp\n"
    with pytest.raises(AnnotationError, match="labels 'jump_up' and 'JumpUp' would both be class 'jump up'"):
        read_list(write(tmp_path / "list.csv", f"path,label\n{rows}"))
    assert read_list(tmp_path / "list.csv", ["jump up", "walk"])[0][2].label == 0  # where somebody says so, they are
    for folder in ("jump_up", "jump up"):
        write(tmp_path / "videos" / folder / "a.mp4", "")
    with pytest.raises(AnnotationError, match="would both be class 'jump up'"):
        read_list(tmp_path / "videos")


def test_a_name_is_one_however_its_letters_are_composed(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label\na.mp4,caf\u00e9\nb.mp4,cafe\u0301\n")
    videos, names = read_list(tmp_path / "list.csv")
    assert names == ["caf\u00e9"]
    assert [video.label for video in videos] == [0, 0]


def test_numbers_count_as_names_for_who_only_counts(tmp_path: Path) -> None:
    videos, classes = read_list(write(tmp_path / "a.txt", "a.mp4 10\nb.mp4 9\nc.mp4 10\n"), numbers=True)
    assert classes == ["9", "10"]
    assert [video.label for video in videos] == [1, 0, 1]
    assert read_list(tmp_path / "a.txt", [str(i) for i in range(11)], numbers=True)[1][10] == "10"


def test_hmdb51(tmp_path: Path) -> None:
    write(tmp_path / "brush_hair_test_split1.txt", "April_09.avi 1 \nAtheism.avi 2 \nunused.avi 0 \n")
    write(tmp_path / "clap_test_split1.txt", "#20_Rhythm_clap.avi 1 \n\n")  # no comment
    write(tmp_path / "wave_test_split1.txt", "hello.avi 1 \n")
    write(tmp_path / "wave_test_split2.txt", "hello.avi 2 \n")
    pattern = tmp_path / "*_test_split1.txt"
    clap, wave = ("clap/#20_Rhythm_clap.avi", "clap"), ("wave/hello.avi", "wave")
    assert labelled(pattern, None) == [("brush_hair/April_09.avi", "brush hair"), clap, wave]
    classes = ["brush hair", "clap", "wave"]
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
        ("a.txt", "a.mp4 1 2 3\n", "line 1: 'a.mp4 1 2 3' has the form `path number number number`. A video has one"),
        ("a.txt", "b.mp4 1\na clip.MP4 run jump\n", "line 2: .* has the form `path word word`"),
        ("a.txt", "b/some folder 120 3\n", "'b/some folder 120 3' has the form `path number number`. .* frame counts"),
        ("a.txt", "a.mp4 0.5 10.25 1\n", "has the form `path number number number`"),
        ("a.csv", "a.mp4,1,2\n", "line 1: 'a.mp4,1,2' has the form `path,number,number`"),
        ("a.csv", "a.mp4,\n", "line 1: expected `path label`, got 'a.mp4,'"),
        ("a.csv", "path,label\na.mp4,1,2\n", "line 2: 'a.mp4,1,2' has the form `path,number,number`"),
        ("a.csv", "# by hand\n\npath,label\n\na.mp4,7\n", "line 5: label '7'"),
        ("a.csv", 'path,label\n"a\n# b.mp4",1\n"c\nd.mp4,1\n', "line 5: unexpected end of data"),
        ("a.txt", "", "names no videos"),
        ("a.csv", "# nothing yet\n", "names no videos"),
        ("a.csv", "path,label\n", "names no videos"),
        ("a.csv", "file,label\na.mp4,0\n", "column 'path' is missing"),
        ("a.csv", "path,label,label\na.mp4,0,1\n", "column 'label' is there twice"),
        ("a.csv", "label,video_path\nrun,a.mp4\njump,b.mp4\n", "the path comes first, or a header names the columns"),
        ("a.csv", "run;a.mp4\njump;b.mp4\n", "the path comes first, or a header names the columns: path,label"),
        ("a.csv", "path,label\na.mp4,\n", "line 2: path, label must not be empty"),
        ("a.csv", 'path,label\na.mp4,"  "\n', "line 2: path, label must not be empty"),
        ("a.csv", "path,label,split\na.mp4,0,val\nb.mp4,1,train\n", "several splits, train, val: make a list of each"),
        ("a.csv", "path,label,subset\na.mp4,0,1\nb.mp4,1,2\n", "several splits, 1, 2"),
        (
            "b.csv",
            "label,youtube_id,time_start,time_end,split\nx,y,1,2,train\nx,z,1,2,validate\n",
            "several splits, train, validate",
        ),
        (
            "a.json",
            '{"x": {"annotations": {"label": "a", "segment": [1, 2]}, "subset": "train"}, "y": {"subset": "test"}}',
            "several splits, test, train",
        ),
        ("a.json", "{", "is not JSON"),
        ("a.json", "3", "unexpected JSON"),
        ("a.json", '[{"label": "x"}]', "entry 1: expected an object with id"),
        ("a.json", '{"x": {"annotations": {}}}', "entry 'x'"),
        ("a.json", '{"x": {"annotations": {"label": "a", "segment": [1, "inf"]}}}', "entry 'x': start and end must be"),
        ("a.json", '{"x": {"annotations": {"label": null, "segment": [1, 2]}}}', "entry 'x': label must be a text"),
        ("a.json", '[{"id": "7", "template": null}]', "entry 1: template must be a text, got None"),
        ("a.json", '[{"id": "7", "label": ""}]', "entry 1: label must be a text, got ''"),
        ("b.csv", "label,youtube_id,time_start,time_end\nx,y,a,b\n", "start and end must be seconds"),
        ("b.csv", "label,youtube_id,time_start,time_end\nx,y,1,inf\n", "start and end must be seconds"),
        ("a.txt", f"{131_073 * 'a'}.mp4 0\n", "line 1: field larger than field limit"),
        ("a.txt", f"a.mp4 0\n\n{131_073 * 'b'}.mp4 0\n", "line 3: field larger than field limit"),
        ("a.csv", f"a.mp4,0\n{131_073 * 'b'}.mp4,0\n", "line 2: field larger than field limit"),
        ("a.csv", f"path,label\n{131_073 * 'b'}.mp4,0\n", "line 2: field larger than field limit"),
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


def test_texts_in_no_known_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("path,label\na.mp4,0\n".encode("utf-16-le"))
    with pytest.raises(AnnotationError, match=r"a.csv: it holds zero bytes, as UTF-16 without a byte-order mark does"):
        read_list(tmp_path / "a.csv", ["x"])
    (tmp_path / "b.csv").write_bytes("path,label\né.mp4,0\n".encode("cp1252"))
    message = r"b.csv: it is not in UTF-8, byte 0xe9 in line 2; save it as UTF-8, which Excel calls CSV UTF-8"
    with pytest.raises(AnnotationError, match=message):
        read_list(tmp_path / "b.csv", ["x"])
    (tmp_path / "c.csv").write_bytes(codecs.BOM_UTF16_LE + b"p")
    with pytest.raises(AnnotationError, match=r"c.csv: it is not in UTF-16; save it as UTF-8"):
        read_list(tmp_path / "c.csv", ["x"])


def test_files_of_labels_have_comments_as_lists_have(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.txt", "# of the lobby\nwaving \n\n  # sitting\ndrinking #1\n")
    assert read_labels([str(path), "#1"]) == ["waving", "drinking #1", "#1"]
    with pytest.raises(AnnotationError, match="names no labels"):
        read_labels([str(write(tmp_path / "none.txt", "# nothing\n"))])


@pytest.mark.parametrize("read", [read_list, read_paths])
def test_what_a_shell_makes_of_a_pattern_without_quotes(read: Callable[[Path], object], tmp_path: Path) -> None:
    """A file of one class, whose flags would be read as numbers of classes."""
    path = write(tmp_path / "wave_test_split1.txt", "a.avi 1\nb.avi 2\n")
    with pytest.raises(AnnotationError, match=r"one class of HMDB-51: .* in quotes, as '.*/\*_test_split1\.txt'"):
        read(path)
    write(path, "Wave/a.avi 1\nWave/b.avi 2\n")
    assert len(read_paths(path)) == 2  # a list of that name


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"cannot read .*none.txt"):
        read_list(tmp_path / "none.txt", ["a"])
    with pytest.raises(AnnotationError, match="no file matches"):
        read_list(tmp_path / "*_test_split1.txt", ["a"])


def test_numbers_need_a_class_file(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="a class file is needed"):
        read_list(write(tmp_path / "a.txt", "a.mp4 0\n"))


@pytest.mark.parametrize("text", ["a.mp4\nb c.mp4\n", "path\na.mp4\nb c.mp4\n", '"Path"\n"a.mp4"\n"b c.mp4"\n'])
def test_a_path_a_line(tmp_path: Path, text: str) -> None:
    assert read_paths(write(tmp_path / "a.csv", text)) == [tmp_path / "a.mp4", tmp_path / "b c.mp4"]
