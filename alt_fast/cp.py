"""Copy a configuration that comes along, to edit it: alt-fast cp kinetics400_b16 mine.yaml"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from alt_fast import cli
from alt_fast.errors import ArgumentError, FileError
from alt_fast.files import make_folder, write_text
from alt_fast.training.config import config_files


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = cli.make_parser("cp", "Copy a configuration; `alt-fast train --config FILE` takes it.")
    parser.add_argument("config", metavar="CONFIG", help="its name; `alt-fast ls configs` lists them")
    parser.add_argument("file", type=Path, metavar="FILE", help="file to write, new")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Write the copy."""
    known = config_files()
    if arguments.config not in known:
        raise ArgumentError(f"CONFIG must be one of {', '.join(known)}, got {arguments.config!r}")
    if arguments.file.exists():
        raise FileError(f"{arguments.file} is there already: choose another name")
    make_folder(arguments.file.parent)
    write_text(arguments.file, known[arguments.config].read_text(encoding="utf-8"))
    name = str(arguments.file)
    path = f"./{name}" if name in known else name  # the name alone is the configuration that comes along
    print(f"{name}: train with alt-fast train --config {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
