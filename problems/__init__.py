"""The four operations as problems for others to solve faster: `python -m problems.run`, README.md."""
