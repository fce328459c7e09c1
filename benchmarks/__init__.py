"""Speed of alt-fast beside its alternatives: `pytest benchmarks/ --benchmark-only`. See README.md."""
