"""The README's picture of a terminal is what commands print, as a terminal shows it, and needs no network."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from xml.etree import ElementTree

import pytest

from alt_fast.data.capture import WallClock
from alt_fast.errors import RunError
from alt_fast.live import Status

ROOT = Path(__file__).parent.parent
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def recorder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_terminal", ROOT / "docs" / "record_terminal.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def lines_of(picture: str) -> list[str]:
    """What a picture shows, from top to bottom."""
    texts = [element.text or "" for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]
    return [text.replace("\N{NO-BREAK SPACE}", " ") for text in texts if text.strip()]


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ("", []),
        ("one\r\n\r\ntwo\r\n", ["one", "", "two"]),
        (" 10%|#   |\r100%|####|\r\nend", ["100%|####|", "end"]),
        ("nearly\rdone", ["donely"]),
        ("a status\r\x1b[Kdone\r\n", ["done"]),
        ("a status\r\x1b[K", []),
        ("a\tb\tc\r\n\td\re", ["a       b       c", "e       d"]),
        ("1" * 96 + "\r2\r\n3", ["2" + "1" * 95, "3"]),
        ("1" * 96 + "2\r\x1b[K3", ["1" * 96, "3"]),
    ],
)
def test_output_is_shown_as_a_terminal_leaves_it(recorder: ModuleType, output: str, shown: list[str]) -> None:
    assert recorder.settle(output) == shown


@pytest.mark.parametrize("line", ["\x1b[31mred", "up\x1b[A", "bell\a", "back\b"])
def test_what_a_picture_could_not_show_is_refused(recorder: ModuleType, line: str) -> None:
    with pytest.raises(RunError, match="cannot show"):
        recorder.settle(line)


def test_commands_believe_that_they_are_in_a_terminal(recorder: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    text = "test -t 0 && test -t 1 && test -t 2 && ls && stty size && printf '1 of 2\\r2 of 2\\nnote\\n' >&2"
    assert recorder.run(recorder.Command(text), tmp_path) == ["here", "24 96", "2 of 2", "note"]
    assert recorder.run(recorder.Command("true"), tmp_path) == []
    assert recorder.run(recorder.Command("echo; printf 'no end'"), tmp_path) == ["", "no end"]


def test_long_output_says_what_it_lacks(recorder: ModuleType, tmp_path: Path) -> None:
    assert recorder.run(recorder.Command("seq 6", first=2, last=1), tmp_path) == ["1", "2", "...", "6"]
    assert recorder.run(recorder.Command("seq 6", first=2), tmp_path) == ["1", "2", "..."]
    assert recorder.run(recorder.Command("seq 3", first=2, last=1), tmp_path) == ["1", "2", "3"]


@pytest.mark.parametrize("text", ["echo reason; exit 3", "(echo reason; exit 3) | cat"])
def test_a_command_that_fails_is_no_picture(recorder: ModuleType, text: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"^`{re.escape(text)}` ended with status 3:\nreason"):
        recorder.run(recorder.Command(text), tmp_path)


def test_a_path_of_the_machine_is_no_picture(recorder: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"`pwd` printed {tmp_path}, which is not for others to read"):
        recorder.run(recorder.Command("pwd"), tmp_path)


def test_a_picture_is_text_and_fetches_nothing(recorder: ModuleType) -> None:
    commands = [
        (recorder.Command("a <b> \\\n    & c"), ["[bold] 1 < 2", "", "  50%|██  |"]),
        (recorder.Command("d" * 100), []),
    ]
    picture = recorder.draw(commands)
    assert lines_of(picture) == ["$ a <b> \\", "    & c", "[bold] 1 < 2", "  50%|██  |", "$ " + "d" * 94, "d" * 6]
    assert re.findall(r"https?:[^\"]*", picture) == ["http://www.w3.org/2000/svg"]
    assert set(re.findall(r"url\((.)", picture)) == {"#"}
    for word in ("@font-face", "@import", "<script", "href"):
        assert word not in picture


def test_the_picture_in_the_readme_is_of_these_commands(recorder: ModuleType) -> None:
    path = ROOT / "docs" / "terminal.svg"
    assert path.stat().st_size < 60_000
    shown = "\n".join(lines_of(path.read_text()))
    prompts = [f"$ {command.text}" for command in recorder.COMMANDS]
    assert shown.count("\n$ ") + 1 == len(prompts)
    assert all(prompt in shown for prompt in prompts)
    assert "](docs/terminal.svg)" in (ROOT / "README.md").read_text()
    counts = dict.fromkeys(("received", "passed_over", "left_out", "damaged", "lost", "judged"), 0)
    status = Status(SimpleNamespace(**counts), SimpleNamespace(**counts), WallClock())  # type: ignore[arg-type]
    status.latency = 0.0
    said, last = (re.sub(r"[\d.]+", "#", text) for text in (status.summary(), shown.replace("\n", "")))
    assert last.endswith(said), "what live says has changed: make terminal"
