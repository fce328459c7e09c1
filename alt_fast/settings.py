"""Command lines of dataclasses: every field an option, spelled with hyphens as all our options are."""

import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from alt_fast.errors import AltFastError

if TYPE_CHECKING:
    import jsonargparse


def make_settings_parser(
    command: str, description: str, rewrite: Callable[[list[str]], list[str]] = list, **options: Any
) -> "jsonargparse.ArgumentParser":
    """Return a parser of `alt-fast COMMAND` to add dataclasses to, by `add_class_arguments`.

    Underscores, as in configuration files, are understood too. `parse_args` gives instances of the dataclasses.
    rewrite: what to do with the arguments first.
    """
    import jsonargparse  # an extra

    class SettingsParser(jsonargparse.ArgumentParser):
        def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **named: Any) -> Any:  # type: ignore[override]
            given = [with_underscores(argument) for argument in (sys.argv[1:] if args is None else args)]
            for argument in given:
                value = argument.partition("=")[2] if argument.startswith("--") else argument
                if value.startswith(("#", "&")):  # a comment or an anchor in YAML, so nothing
                    self.error(f"{value!r} cannot be told from nothing: a path may begin with ./")
            try:
                found = super().parse_args(rewrite(given), *rest, **named)
                self.check_sections(found, self.get_defaults())
                return self.instantiate(found)
            except AltFastError:
                raise
            except ValueError as e:  # of jsonargparse's: nothing else has run yet
                self.error(" ".join(str(e).split()))

        def check_sections(self, found: jsonargparse.Namespace, defaults: jsonargparse.Namespace, of: str = "") -> None:
            """Refuse what stands in a file in the place of a section's settings, as nothing does in `optim:`."""
            for name, default in vars(defaults).items():
                if not isinstance(default, jsonargparse.Namespace) or name not in found:
                    continue
                if isinstance(found[name], jsonargparse.Namespace):
                    self.check_sections(found[name], default, f"{of}{name}.")
                else:
                    given = "nothing: leave it out" if found[name] is None else repr(found[name])
                    self.error(f"{of}{name} must hold settings, got {given}")

        def format_help(self, *rest: Any) -> str:
            return re.sub(r"--[\w.]+", lambda name: name[0].replace("_", "-"), super().format_help(*rest))

    return SettingsParser(prog=f"alt-fast {command}", description=description, allow_abbrev=False, **options)


def with_underscores(argument: str) -> str:
    """Spell an option as its setting is: --optim.batch-size=8 as --optim.batch_size=8. What is no option stays."""
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else argument
