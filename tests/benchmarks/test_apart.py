"""A process of its own, whose peak memory is its own."""

import multiprocessing
import os
import subprocess
import sys

import pytest

from benchmarks.apart import apart, children_peak_bytes, peak_bytes


def test_a_call_has_a_process_of_its_own() -> None:
    assert apart(os.getpid) not in (os.getpid(), apart(os.getpid))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        apart(os.stat, "nowhere")


def start_method() -> str:
    """How this process starts others."""
    return multiprocessing.get_start_method()


def test_it_starts_processes_as_this_one_does() -> None:
    assert apart(start_method) == start_method() != "spawn"


def peak_with(size: int) -> int:
    """Peak of a process that has held so many bytes, and holds them no more."""
    held = bytearray(b"x") * size
    del held
    return peak_bytes()


def test_its_peak_is_its_own() -> None:
    """Not that of the process that started it, which has had much more."""
    assert peak_with(2**27) > 2**27
    assert 2**20 < apart(peak_bytes) < 2**26
    assert 2**27 < apart(peak_with, 2**27) < 2**28


def test_the_peak_of_children_is_of_those_that_ended() -> None:
    assert apart(children_peak_bytes) == 0
    subprocess.run([sys.executable, "-c", ""], check=True)
    assert children_peak_bytes() > 2**20
