"""Record the README's picture of a terminal, an SVG that needs no network: python docs/record_terminal.py FILE

In an empty folder of its own it generates videos, then runs COMMANDS one by one, as a person would in a terminal. The
picture is what they print; about five minutes on one core.
"""

import argparse
import os
import pty
import re
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from alt_fast import cli
from alt_fast.data.encode import write_video
from alt_fast.data.motion_shapes import level2
from alt_fast.data.motion_shapes.drawing import Image8
from alt_fast.errors import RunError
from alt_fast.files import make_folder, write_text


@dataclass(frozen=True)
class Command:
    """What is typed. first, last: lines of its output to show, in place of all; `...` stands for those between."""

    text: str
    first: int | None = None
    last: int = 0


COMMANDS = (
    Command("ls clips"),
    Command(
        "alt-fast train --data.train clips --out runs/mine --config motion_shapes_2 \\\n"
        "    --data.generate null --frame-only false --optim.epochs 20",
        first=2,
        last=8,
    ),
    Command("alt-fast classify videos --checkpoint runs/mine --out results.csv"),
    Command("head -5 results.csv | cut -d, -f1,3,4"),
    Command("alt-fast classify match.webm --checkpoint runs/mine --every 1s"),
    Command("alt-fast live match.webm --checkpoint runs/mine"),
)

WIDTH, HEIGHT, TAB = 96, 24, 8  # of the terminal, in characters

ERASE = "\x1b[K"  # what stands to the right

ACTIONS = level2.TRAINED[:16:2]  # by whom, what, and with what

THEME = TerminalTheme((246, 248, 250), (31, 35, 40), [(31, 35, 40)] * 8)

SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{ font: {char_height}px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }}
{styles}
</style>
<defs>{lines}</defs>
{chrome}
<g class="{unique_id}-matrix" transform="translate({terminal_x}, {terminal_y})">
{matrix}
</g>
</svg>
"""
"""rich's picture, in the reader's own font where its own fetches one."""


def settle(output: str) -> list[str]:
    """Return the lines that a terminal shows in the end of what was written to it.

    Text goes over what stood there, and on in the next line at the terminal's width. Raises RunError for colours, and
    for what moves the cursor otherwise than returns and tabs do.
    """
    lines, at = [""], 0
    for part in re.split(f"([\\r\\n\\t]|{re.escape(ERASE)})", output):
        if part == "\r":
            at = 0
        elif part == "\n":
            lines.append("")
        elif part == "\t":
            at = min(at + TAB - at % TAB, WIDTH - 1)
        elif part == ERASE:
            lines[-1] = lines[-1][:at]
        elif not part.isprintable():
            raise RunError(f"cannot show {part!r}: colours, and other ways to move the cursor, are not understood")
        else:
            for character in part:
                if at == WIDTH:
                    lines.append("")
                    at = 0
                lines[-1] = lines[-1][:at].ljust(at) + character + lines[-1][at + 1 :]
                at += 1
    return lines if lines[-1] else lines[:-1]


def run(command: Command, folder: Path) -> list[str]:
    """Run a command in a folder, by bash in a terminal; returns the lines that this shows.

    Raises RunError when the command fails, or prints a path of this machine.
    """
    terminal, inside = pty.openpty()
    termios.tcsetwinsize(inside, (HEIGHT, WIDTH))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    process = subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", command.text],
        cwd=folder,
        env=os.environ | {"PATH": path, "COLUMNS": str(WIDTH), "LC_ALL": "C.UTF-8", "NO_COLOR": "1"},
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    output = b""
    with suppress(OSError):  # Linux's word for the end
        while some := os.read(terminal, 2**16):
            output += some
    os.close(terminal)
    text = output.decode()
    if process.wait() != 0:
        raise RunError(f"`{command.text}` ended with status {process.returncode}:\n{text}")
    for place in (folder, Path(__file__).parent.parent, sys.prefix):
        if str(place) in text:
            raise RunError(f"`{command.text}` printed {place}, which is not for others to read:\n{text}")
    lines = settle(text)
    if command.first is not None and len(lines) > command.first + command.last:
        lines[command.first : len(lines) - command.last] = ["..."]
    return lines


def draw(commands: Iterable[tuple[Command, Sequence[str]]]) -> str:
    """Return a picture of commands and the lines under them, as SVG."""
    console = Console(file=StringIO(), record=True, width=WIDTH, legacy_windows=False)
    for command, lines in commands:
        for line in settle(f"$ {command.text}".replace("\n", "\r\n")):
            console.print(Text(line, "bold"), no_wrap=True)
        for line in lines:
            console.print(Text(line), no_wrap=True)
    return console.export_svg(title="", theme=THEME, code_format=SVG, unique_id="t")


def write_videos(folder: Path) -> None:
    """Write what the commands use: clips/LABEL/*.webm, videos/*.webm, and match.webm, five actions in a row."""
    for action, triple in enumerate(ACTIONS):
        label = folder / "clips" / level2.label_of(triple).replace(" ", "_")
        make_folder(label)
        for number in range(25):
            write_video(label / f"{number:02}.webm", draw_clip("train", 25 * action + number, triple))
    make_folder(folder / "videos")
    for number in range(16):
        write_video(folder / "videos" / f"{number:02}.webm", draw_clip("test", number, ACTIONS[3 * number % 8]))
    match = [draw_clip("test", 16 + number, ACTIONS[5 * number % 8]) for number in range(5)]
    write_video(folder / "match.webm", np.concatenate(match))


def draw_clip(split: str, number: int, triple: level2.Triple) -> Image8:
    """Return an action of Motion Shapes, level 2, that takes four seconds: [40, 72, 72, 3]."""
    return level2.render(level2.draw_clip(0, split, number, triple), 0, np.linspace(0, 1, 40).tolist(), 72)


def record(arguments: argparse.Namespace) -> int:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_videos(folder)
        write_text(arguments.file, draw([(command, run(command, folder)) for command in COMMANDS]))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = cli.Parser("python docs/record_terminal.py", description="Record the README's picture of a terminal.")
    parser.add_argument("file", type=Path, metavar="FILE", help="SVG to write")
    return parser


if __name__ == "__main__":
    sys.exit(cli.run(make_parser, record))
