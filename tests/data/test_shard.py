"""Archives give the same clips as the files packed into them."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from alt_fast.data.__main__ import main
from alt_fast.data.annotations import Video, read_classes, read_list
from alt_fast.data.config import AugmentConfig, ClipSpec, Loading
from alt_fast.data.dataset import TrainClips
from alt_fast.data.decode import VideoError, decode_clip
from alt_fast.data.loader import Loader, open_backend
from alt_fast.data.shard import pack, write_index
from alt_fast.data.split import by_source
from alt_fast.data.storage import StorageError, locate


@pytest.fixture
def packed(shapes: Path, tmp_path: Path) -> Path:
    """Motion Shapes' training videos in several archives."""
    command = [str(shapes / "train.txt"), "--classes", str(shapes / "classes.csv"), "--out", str(tmp_path / "out")]
    assert main(["shard", *command, "--max-mb", "1", "--name", "mine"]) == 0
    return tmp_path / "out"


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_the_same_clips(shapes: Path, packed: Path, loader: str) -> None:
    pytest.importorskip("nvidia.dali") if loader == "dali" else None
    files, names = read_list(shapes / "train.txt", read_classes(shapes / "classes.csv"))
    members, same_names = read_list(packed / "mine.csv", read_classes(packed / "classes.csv"))
    assert names == same_names
    assert [video.label for video in files] == [video.label for video in members]
    keys = [[(0, i) for i in range(first, first + 8)] for first in (0, 40)]
    batches = []
    for videos in (files, members):
        clips = TrainClips(videos, ClipSpec(2, (32, 32), AugmentConfig()), seed=1)
        backend, _ = open_backend(loader, clips, torch.device("cpu"))  # type: ignore[arg-type]
        batches.append(list(Loader(clips, keys, backend, Loading(loader, 2))))  # type: ignore[arg-type]
    for file, member in zip(*batches, strict=True):
        assert member.failures == []
        assert torch.equal(file.video, member.video)


def test_archives_are_webdataset_s(shapes: Path, packed: Path) -> None:
    with tarfile.open(packed / "mine-00000.tar") as tar:
        first, second = tar.next(), tar.next()
        assert first is not None
        assert second is not None
        assert (first.name, second.name) == ("00000000/00000.webm", "00000000/00000.json")
        content, facts = tar.extractfile(first), tar.extractfile(second)
        assert content is not None
        assert facts is not None
        assert content.read() == (shapes / "train/00000.webm").read_bytes()
        assert json.load(facts) == {
            "path": str(shapes / "train/00000.webm"),
            "label": 0,
            "class": "a square moving right",
        }


def test_an_interrupted_run_goes_on(shapes: Path, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive, index = packed / "mine-00000.tar", packed / "mine-00000.tar.json"
    content, before = archive.read_bytes(), archive.stat().st_mtime_ns
    command = [str(shapes / "train.txt"), "--classes", str(shapes / "classes.csv"), "--out", str(packed)]
    assert main(["shard", *command, "--max-mb", "1", "--name", "mine"]) == 0
    assert archive.stat().st_mtime_ns == before
    index.unlink()
    archive.write_bytes(content[:100])
    assert main(["shard", *command, "--max-mb", "1", "--name", "mine"]) == 0
    assert archive.read_bytes() == content
    assert index.is_file()
    assert "72 of 72 videos" in capsys.readouterr().out


def test_what_is_other_than_it_was_is_packed_anew(shapes: Path, tmp_path: Path) -> None:
    """Other videos, or the same ones under other labels."""
    first, second = (shapes / "train" / f"{number:05}.webm" for number in range(2))
    for rows in ([(first, 0), (second, 1)], [(first, 1), (second, 0)], [(second, 1), (first, 0)]):
        videos = [Video(*row) for row in rows]
        assert pack(videos, ["a", "b"], "mine", tmp_path, 2**30) == {}
        packed, names = read_list(tmp_path / "mine.csv")
        assert names == ["a", "b"]
        assert [member.label for member in packed] == [video.label for video in videos]
        with tarfile.open(tmp_path / "mine-00000.tar") as tar:
            for number, video in enumerate(videos):
                stem = f"{number:08}/{video.path.stem}"
                content, about = (tar.extractfile(f"{stem}.{ending}") for ending in ("webm", "json"))
                assert content is not None
                assert about is not None
                assert content.read() == video.path.read_bytes()
                assert json.load(about)["class"] == "ab"[video.label]


def test_nobody_else_s_lists_are_replaced(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the list itself nor class names in another order."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{shapes}/train/0000{number}.webm,{label}\n" for number, label in enumerate("ba")]
    (tmp_path / "train.csv").write_text("path,label\n" + "".join(rows))
    before = (tmp_path / "train.csv").read_text()
    assert main(["shard", "train.csv", "--out", "."]) == 1
    assert "train.csv is no list of archives train-*.tar" in capsys.readouterr().err
    (tmp_path / "classes.csv").write_text("id,name\n0,b\n1,a\n")
    assert main(["shard", "train.csv", "--out", ".", "--name", "packed"]) == 1
    assert "there is another classes.csv: remove it, or choose another folder" in capsys.readouterr().err
    assert (tmp_path / "train.csv").read_text() == before
    assert not list(tmp_path.glob("*.tar"))
    again = ["shard", "train.csv", "--out", ".", "--name", "packed", "--classes", "classes.csv"]
    assert main(again) == main(again) == 0
    (tmp_path / "mine.csv").write_text(f"path,label\n{shapes}/train/00000.webm,a\n")
    (tmp_path / "mine.csv").write_text(f"path,label\nmine-clips/a.mp4,a\n{shapes}/train/00000.webm,b\n")
    assert main(["shard", "mine.csv", "--out", "."]) == 1
    assert "mine.csv is no list of archives mine-*.tar" in capsys.readouterr().err


def test_lists_of_its_own_are_renewed(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of nothing, as a wrong --root leaves it, and one that had fewer classes."""
    (tmp_path / "list.csv").write_text("path,label\ntrain/00000.webm,a\n")
    command = ["shard", str(tmp_path / "list.csv"), "--out", str(tmp_path / "packed")]
    assert main([*command, "--root", str(tmp_path)]) == 1
    assert (tmp_path / "packed" / "list.csv").read_text() == "path,label\n"
    assert main([*command, "--root", str(shapes)]) == 0
    (tmp_path / "list.csv").write_text("path,label\ntrain/00000.webm,b\ntrain/00001.webm,a\n")
    assert main([*command, "--root", str(shapes)]) == 0
    assert (tmp_path / "packed" / "classes.csv").read_text() == "id,name\n0,a\n1,b\n"
    (tmp_path / "list.csv").write_text("path,label\ntrain/00000.webm,c\n")
    assert main([*command, "--root", str(shapes), "--name", "other"]) == 1  # whose classes are the other list's, too
    assert "there is another " in capsys.readouterr().err


def test_size_limit_starts_a_new_archive(shapes: Path, tmp_path: Path) -> None:
    videos, classes = read_list(shapes / "train.txt", read_classes(shapes / "classes.csv"))
    sizes = [video.path.stat().st_size for video in videos]
    assert pack(videos, classes, "small", tmp_path, 3 * max(sizes)) == {}
    archives = sorted(tmp_path.glob("small-*.tar"))
    assert len(archives) >= sum(sizes) // (3 * max(sizes))
    listed, _ = read_list(tmp_path / "small.csv", classes)
    assert len(listed) == len(videos)
    assert all(locate(video.path).size == size for video, size in zip(listed, sizes, strict=True))


def test_what_cannot_be_packed_is_named(tmp_path: Path, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.mp4").touch()
    good = shapes / "train/00000.webm"
    (tmp_path / "list.csv").write_text(f"path,label\n{good},a\n{tmp_path}/empty.mp4,b\n{tmp_path}/no.mp4,a\n")
    assert main(["shard", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert "1 of 3 videos" in out
    assert "empty.mp4: empty file (0 bytes)" in err
    assert "no.mp4: no such file" in err


def test_indexing_other_people_s_archives(shapes: Path, tmp_path: Path) -> None:
    archive = tmp_path / "theirs.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("00000.webm", "00001.webm"):
            tar.add(shapes / "train" / name, arcname=f"some/long/{'folder' * 20}/{name}")
    member = f"{archive}/some/long/{'folder' * 20}/00001.webm"
    with pytest.raises(VideoError, match="the archive has no index theirs.tar.json; alt-fast data shard"):
        decode_clip(member, [0.5])
    assert main(["shard", str(archive), "--index"]) == 0
    assert (decode_clip(member, [0.5]) == decode_clip(shapes / "train/00001.webm", [0.5])).all()
    with pytest.raises(VideoError, match="the archive has no member x.webm"):
        decode_clip(f"{archive}/x.webm", [0.5])


def test_members_have_the_names_that_paths_have(shapes: Path, tmp_path: Path) -> None:
    """`tar -cf x.tar -C dir .` calls them ./a.webm; what was appended under a name that is there takes its place."""
    archive = tmp_path / "theirs.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(shapes / "train/00000.webm", arcname="./a.webm")
        tar.add(shapes / "train/00001.webm", arcname="./b//c.webm")
        tar.add(shapes / "train/00002.webm", arcname="a.webm")
    assert main(["shard", str(archive), "--index"]) == 0
    assert list(json.loads((tmp_path / "theirs.tar.json").read_text())) == ["a.webm", "b/c.webm"]
    for member, number in (("a.webm", 2), ("b/c.webm", 1)):
        found = decode_clip(f"{archive}/./{member}", [0.5])
        assert (found == decode_clip(shapes / f"train/0000{number}.webm", [0.5])).all()


def test_what_clips_were_cut_from_is_told_by_archives_too(shapes: Path, tmp_path: Path) -> None:
    """A sample keeps the name of its video, up to dots, at which WebDataset ends names."""
    names = ["v_YoYo_g01_c01.webm", "v_YoYo_g01_c02.webm", "a.b.webm"]
    for name in names:
        shutil.copy(shapes / "train/00000.webm", tmp_path / name)
    assert pack([Video(tmp_path / name, 0) for name in names], ["a"], "mine", tmp_path / "out", 2**30) == {}
    videos, _ = read_list(tmp_path / "out/mine.csv")
    assert [video.path.name for video in videos] == [*names[:2], "a_b.webm"]
    assert [len(clips) for clips in by_source(videos).values()] == [1, 2]


def test_links_in_archives_stand_for_what_they_name(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    shutil.copy(shapes / "train/00000.webm", tmp_path / "a/a.webm")
    os.link(tmp_path / "a/a.webm", tmp_path / "a/hard.webm")
    (tmp_path / "a/soft.webm").symlink_to("a.webm")
    (tmp_path / "a/softer.webm").symlink_to("soft.webm")
    archive = tmp_path / "theirs.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "a", arcname="a")
    write_index(archive)
    places = json.loads((tmp_path / "theirs.tar.json").read_text())
    assert places.keys() == {"a/a.webm", "a/hard.webm", "a/soft.webm", "a/softer.webm"}
    assert len({tuple(place) for place in places.values()}) == 1
    expected = decode_clip(shapes / "train/00000.webm", [0.5])
    assert (decode_clip(f"{archive}/a/softer.webm", [0.5]) == expected).all()


def test_members_without_bytes_of_their_own_are_named_where_they_are_videos(tmp_path: Path) -> None:
    archive = tmp_path / "theirs.tar"
    for kind, linked in (
        *((tarfile.SYMTYPE, "gone.webm"), (tarfile.SYMTYPE, "a.webm"), (tarfile.SYMTYPE, "folder")),
        *((tarfile.GNUTYPE_SPARSE, ""), (tarfile.FIFOTYPE, "")),
    ):
        for name in ("a.webm", "README"):
            with tarfile.open(archive, "w") as tar:
                member, folder = tarfile.TarInfo(name), tarfile.TarInfo("folder")
                member.type, member.linkname, folder.type = kind, linked, tarfile.DIRTYPE
                tar.addfile(folder)
                tar.addfile(member)
            if name == "README":
                write_index(archive)
                assert (tmp_path / "theirs.tar.json").read_text() == "{}"
            else:
                with pytest.raises(StorageError, match=r"a\.webm has no bytes of its own there"):
                    write_index(archive)


def test_a_file_that_tar_was_given_twice_is_the_first(shapes: Path, tmp_path: Path) -> None:
    archive = tmp_path / "theirs.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(shapes / "train/00000.webm", arcname="a.webm")
        again = tarfile.TarInfo("./a.webm")
        again.type, again.linkname = tarfile.LNKTYPE, "a.webm"
        tar.addfile(again)
    write_index(archive)
    assert (decode_clip(f"{archive}/a.webm", [0.5]) == decode_clip(shapes / "train/00000.webm", [0.5])).all()


def test_names_that_no_list_can_hold_are_packed(shapes: Path, tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9.webm"), "two\nlines.webm"]
    for name in names:
        shutil.copy(shapes / "train/00000.webm", tmp_path / name)
    for _ in range(2):
        assert pack([Video(tmp_path / name, 0) for name in names], ["a"], "mine", tmp_path / "out", 2**30) == {}
        videos, _ = read_list(tmp_path / "out/mine.csv")
        assert [video.path.stem for video in videos] == ["caf\N{REPLACEMENT CHARACTER}", "two_lines"]
        assert all(locate(video.path).size for video in videos)


def test_archives_whose_names_look_like_addresses(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    videos = [Video(shapes / "train/00000.webm", 0)]
    assert pack(videos, ["a"], "12:30", Path(), 2**30) == {}
    for member in ("12:30-00000.tar/00000000/00000.webm", tmp_path / "12:30-00000.tar/00000000/00000.webm"):
        assert (decode_clip(member, [0.5]) == decode_clip(videos[0].path, [0.5])).all()


def test_the_new_list_is_named_after_the_old_one(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where that is the folder where one is; a pattern gives no name that can be read back."""
    folder, out = tmp_path / "clips", str(tmp_path / "out")
    (folder / "waving").mkdir(parents=True)
    shutil.copy(shapes / "train/00000.webm", folder / "waving/a.webm")
    (folder / "waving_test_split1.txt").write_text("a.webm 1\n")
    monkeypatch.chdir(folder)
    assert main(["shard", ".", "--out", out]) == 0
    assert {path.name for path in Path(out).iterdir()} >= {"clips.csv", "clips-00000.tar"}
    for arguments in (["*_test_split1.txt"], [".", "--name", ""], [".", "--name", "a/b"]):
        assert main(["shard", *arguments, "--out", out]) == 2
        assert "--name must be given, and hold neither * nor /" in capsys.readouterr().err
    assert main(["shard", "*_test_split1.txt", "--name", "hmdb", "--out", out]) == 0
    assert len(read_list(Path(out) / "hmdb.csv")[0]) == 1


def test_bad_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StorageError, match="no such archive"):
        locate(tmp_path / "no.tar/a.mp4")
    (tmp_path / "bad.tar").write_bytes(b"x" * 1000)
    (tmp_path / "bad.tar.json").write_text('{"a.mp4": [512, 1000], "b.mp4": [0, 0]}')
    with pytest.raises(StorageError, match=r"the archive is truncated: it ends before a.mp4 does"):
        locate(tmp_path / "bad.tar/a.mp4")
    with pytest.raises(StorageError, match="empty file"):
        locate(tmp_path / "bad.tar/b.mp4")
    (tmp_path / "worse.tar").touch()
    (tmp_path / "worse.tar.json").write_text("[1]")
    with pytest.raises(StorageError, match="is no index of an archive"):
        locate(tmp_path / "worse.tar/a.mp4")
    assert main(["shard", str(tmp_path / "bad.tar"), "--index"]) == 1
    assert "is no tar archive" in capsys.readouterr().err
    assert main(["shard", "list.csv"]) == 2
    assert main(["shard", str(tmp_path / "bad.tar"), "--index", "--name", "mine"]) == 2
    assert "--name has no effect on --index" in capsys.readouterr().err
