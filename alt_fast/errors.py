"""What can be wrong with what a user gives and with what a machine has: each error tells its cause in one line."""


class AltFastError(Exception):
    """The base of all errors that are meant for the user. status: what a command exits with."""

    status = 1


class ArgumentError(AltFastError, ValueError):
    """An argument, option or setting that cannot be used; the message names it, what was given and what is accepted."""

    status = 2


class CheckpointError(AltFastError, RuntimeError):
    """A checkpoint that cannot be used; the message names file and cause."""


class FileError(AltFastError):
    """A file or folder that cannot be read or written; the message names it and the cause."""


class RunError(AltFastError, RuntimeError):
    """A run that cannot start or go on; the message says why and what to do."""


def check_at_least(settings: object, **least: float) -> None:
    """Raise ArgumentError unless each of these attributes is at least the number given for it."""
    for name, limit in least.items():
        if not getattr(settings, name) >= limit:
            raise ArgumentError(f"{name} must be >= {limit:g}, got {getattr(settings, name)}")


def check_named(settings: object, *paths: str) -> None:
    """Raise ArgumentError for paths that are given and empty, as of a shell's variable that is not set."""
    for name in paths:
        if getattr(settings, name) == "":
            raise ArgumentError(f"{name} must name a file or folder, got ''")


def check_seed(name: str, *seeds: int) -> None:
    """Raise ArgumentError for seeds that `alt_fast.data.rng` does not take: below 0, or of over 128 bits."""
    for seed in seeds:
        if not 0 <= seed < 2**128:
            raise ArgumentError(f"{name} must be {'>= 0' if seed < 0 else '< 2**128'}, got {seed}")
