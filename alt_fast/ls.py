"""List what can be named on a command line: configurations, backbones, hosts, methods.

alt-fast ls
alt-fast ls backbones
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

from alt_fast import cli
from alt_fast.errors import ArgumentError


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = cli.make_parser("ls", "List what can be named elsewhere; without KIND, all of it.")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"any of {', '.join(KINDS)}")
    return parser


def configs() -> Iterator[str]:
    """Yield their names and first lines."""
    from alt_fast.training.config import config_files

    for name, path in config_files().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        yield f"{name:26} {first}"


def backbones() -> Iterator[str]:
    """Yield the names of CLIPs of open_clip that ALT takes."""
    from alt_fast.model.clip_weights import backbones

    yield from backbones()


def hosts() -> Iterator[str]:
    """Yield libraries, and what of them `apply_patch` takes."""
    from alt_fast.tome.patch import HOSTS

    yield from (f"{library:14} {towers}" for library, (_, towers) in HOSTS.items())


def methods() -> Iterator[str]:
    """Yield ways to remove tokens, what they do, and what their r means."""
    from alt_fast.methods import METHODS

    for method in METHODS.values():
        yield f"{method.name:10} {method.what} ({method.source}); r: {method.r}"


KINDS = {
    "configs": (configs, "for alt-fast train --config NAME and alt-fast cp NAME FILE"),
    "backbones": (backbones, "for --model.backbone, create_model(backbone=...) and --backbone"),
    "hosts": (hosts, "for apply_patch: libraries, and their vision transformers"),
    "methods": (methods, "for alt-fast judge --method NAME: ways to remove tokens"),
}


def run(arguments: argparse.Namespace) -> int:
    """Print the lists."""
    for kind in arguments.kinds:
        if kind not in KINDS:
            raise ArgumentError(f"KIND must be any of {', '.join(KINDS)}, got {kind!r}")
    for kind in arguments.kinds or KINDS:
        names, what = KINDS[kind]
        print(f"{kind}, {what}:")
        for line in names():
            print(f"  {line}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
