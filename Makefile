# `make` targets use the environment that the README's commands make.
PYTHON ?= .venv/bin/python

.PHONY: lint test test-gpu bench demo

test:
	$(PYTHON) -m pytest

# Every kernel compiled on a GPU, against its reference.
test-gpu:
	TRITON_INTERPRET=0 $(PYTHON) -m pytest tests/kernels --device cuda

# All benchmarks, on the GPU where there is one, into a result file of their own.
bench:
	$(PYTHON) -m pytest benchmarks/ --benchmark-only --results benchmarks/results/$$(date -u +%Y%m%d-%H%M%S).jsonl

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

demo:
	$(PYTHON) -m alt_fast.train --compile --output runs/demo
	$(PYTHON) -m alt_fast.classify data/motion_shapes/unseen/00000.webm --checkpoint runs/demo
