"""Folders for others: what they hold, the model card, and the program that runs without our code."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor import config as inductor_config

import alt_fast
from alt_fast.data.config import AugmentConfig
from alt_fast.evaluate import main as evaluate
from alt_fast.export import main
from alt_fast.inference.trained import TrainedModel, save_model
from alt_fast.model.alt import ALT
from tests.conftest import few_blocks, small_alt


@pytest.fixture(scope="module")
def folder(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "mine"
    assert main(["--checkpoint", str(trained_run), "--out", str(out)]) == 0
    return out


def export_small(folder: Path, option: str, **options: Any) -> ALT:
    """Export a small ALT to `folder` / "new", where the image tower has one block; returns it."""
    model = small_alt(**options)
    save_model(folder / "small.safetensors", TrainedModel(model, ["a star"], ["{}"], AugmentConfig()))
    with few_blocks():
        assert main(["--checkpoint", str(folder / "small.safetensors"), "--out", str(folder / "new"), option]) == 0
    return model


def test_the_folder_is_the_model(trained_run: Path, folder: Path) -> None:
    names = {"README.md", "config.yaml", "corpus.json", "environment.json", "metrics.json", "model.json"}
    assert {path.name for path in folder.iterdir()} == names | {"model.safetensors"}
    before, now = alt_fast.load(str(trained_run)), alt_fast.load(str(folder))
    assert (before.classes, before.templates, before.augment) == (now.classes, now.templates, now.augment)
    expected = before.model.state_dict()
    assert all(torch.equal(expected[name], weight) for name, weight in now.model.state_dict().items())
    assert alt_fast.Corpus.load(folder / "corpus.json") == now.model.corpus
    settings = json.loads((folder / "model.json").read_text())
    assert settings["model"]["r"] == now.model.config.r
    assert settings["classes"] == now.classes
    arguments = ["--list", str(trained_run.parent / "data" / "test.txt"), "--workers", "0", "--json"]
    assert evaluate(["--checkpoint", str(folder), *arguments]) == 0


def test_the_card_says_what_was_measured(trained_run: Path, folder: Path, tmp_path: Path) -> None:
    metrics = json.loads((trained_run / "metrics.json").read_text())
    card = (folder / "README.md").read_text()
    assert card == (trained_run / "README.md").read_text()
    assert f"| Top-1, test videos | {100 * metrics['top1']:.1f} | 2.8 | 36 |" in card
    assert f"| {100 * metrics['top1_unseen_pairs']:.1f} | 8.3 | 12 |" in card
    assert f"torch {torch.__version__}" in card
    assert "a deviation was not measured" in card
    assert main(["--checkpoint", str(trained_run / "model.safetensors"), "--out", str(tmp_path / "bare")]) == 0
    bare = (tmp_path / "bare" / "README.md").read_text()
    assert "Not measured: these weights come without the scores" in bare
    assert "| % |" not in bare


def test_the_program_runs_without_our_models(tmp_path: Path) -> None:
    """In a process that imports the operations only, on another number of clips."""
    model = export_small(tmp_path, "--program")
    with zipfile.ZipFile(tmp_path / "new" / "video_encoder.pt2") as packed:
        assert not any(b".py" in packed.read(name) for name in packed.namelist() if name.endswith(".json"))
    video = torch.randn(3, model.config.frames, 3, *model.image_size)
    torch.save(video, tmp_path / "video.pt")
    code = (
        "import sys, torch, alt_fast_kernels\n"
        f"program = torch.export.load({str(tmp_path / 'new' / 'video_encoder.pt2')!r}).module()\n"
        f"torch.save(program(torch.load({str(tmp_path / 'video.pt')!r})), {str(tmp_path / 'z.pt')!r})\n"
        "assert not [name for name in sys.modules if name.startswith(('alt_fast.', 'open_clip'))]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
    with torch.inference_mode():
        torch.testing.assert_close(torch.load(tmp_path / "z.pt"), model.describe(video))


def test_the_compiled_program_gives_the_same(tmp_path: Path) -> None:
    with inductor_config.patch({"aot_inductor.debug_compile": True, "aot_inductor.precompile_headers": False}):
        model = export_small(tmp_path, "--aoti", r=0, query="frame")
    run = torch._inductor.aoti_load_package(str(tmp_path / "new" / "video_encoder.aoti.pt2"))
    for count in (1, 3):
        video = torch.randn(count, 2, 3, *model.image_size)
        with torch.inference_mode():
            torch.testing.assert_close(run(video), model.describe(video), rtol=1e-4, atol=1e-4)


def test_a_folder_is_there_whole_or_not_at_all(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new"
    out.mkdir()
    command = ["--checkpoint", str(folder), "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr("alt_fast.inference.export.model_card", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(command)
        assert [path.name for path in tmp_path.iterdir()] == ["new"]
        assert not any(out.iterdir())
    mask = out.stat().st_mode
    assert main(command) == 0
    assert (out / "model.safetensors").exists()
    assert out.stat().st_mode == mask
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_what_cannot_be_exported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--checkpoint", str(tmp_path), "--out", str(tmp_path / "new")]) == 1
    assert "holds no model.safetensors" in capsys.readouterr().err
    assert main(["--checkpoint", str(folder), "--out", str(folder)]) == 1
    assert "is no empty folder: choose another --out" in capsys.readouterr().err
    left = tmp_path / "killed" / ".killed.123.partial"
    left.mkdir(parents=True)
    assert main(["--checkpoint", str(folder), "--out", str(left.parent)]) == 1
    assert f"that was killed, or still runs, left {left.name} in it: remove that, or" in capsys.readouterr().err
    command = ["--checkpoint", str(folder), "--out", str(tmp_path / "new")]
    with monkeypatch.context() as patch:
        patch.setattr("alt_fast.inference.export.export_program", lambda model: pytest.fail("before what is refused"))
        assert main([*command, "--program", "--onnx", "encoder"]) == 2
    assert "parts of a model as ONNX are frame_encoder, decoder, video_encoder, got encoder" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("shutil.which", lambda name: None)
        assert main([*command, "--aoti"]) == 1
        assert "--aoti on a CPU needs a C++ compiler, g++ or clang++" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        patch.delitem(sys.modules, "alt_fast.inference.onnx", raising=False)
        patch.delattr("alt_fast.inference.onnx", raising=False)
        assert main([*command, "--onnx"]) == 1
        assert "this needs onnxscript: pip install 'alt-fast[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
