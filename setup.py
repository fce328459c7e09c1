"""The package map; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["alt_fast", "alt_fast.*"]), *find_packages("kernels")],
    package_dir={"alt_fast_kernels": "kernels/alt_fast_kernels"},
)
