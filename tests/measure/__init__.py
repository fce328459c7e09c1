"""Tests of what models compute, how fast, and of what is chosen by it."""
