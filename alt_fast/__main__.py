"""The one door: `alt-fast COMMAND`, or `python -m alt_fast COMMAND`."""

import sys
from collections.abc import Sequence
from importlib import import_module

import alt_fast
from alt_fast import cli

COMMANDS = {
    "train": "train ALT; without options the whole default job, on any machine",
    "evaluate": "test a trained model on lists of videos, as a table or a page",
    "classify": "name the action in videos",
    "live": "name the action in a camera's picture, or any other stream, as it happens",
    "explain": "show what the model saw in a video, as a page, a picture or a video",
    "visualize": "show which patches of an image merge in any vision transformer",
    "judge": "audit a way of removing tokens: speed beside its ceiling, agreement, faults",
    "extract": "write the video vectors of a list of videos",
    "export": "put a trained model in a folder for others",
    "watch": "show how training runs are going",
    "corpus": "make, look at and compare text corpora",
    "data": "check, browse, pack and generate videos",
    "protocols": "the paper's few-shot, zero-shot and linear-probe experiments",
    "ablations": "the paper's ablation tables, with ours beside them",
    "ls": "list configurations, backbones, hosts and methods",
    "cp": "copy a configuration, to edit it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["--version"]:
        print(f"alt-fast {alt_fast.__version__}")
        return 0
    what = "Token merging at the speed its FLOPs promise, and ALT for video action recognition."
    command, rest = cli.choose("alt-fast", what, COMMANDS, argv or ["--help"])
    module = f"alt_fast.{command}.__main__" if command in ("corpus", "data") else f"alt_fast.{command}"
    return import_module(module).main(rest)


if __name__ == "__main__":
    sys.exit(main())
