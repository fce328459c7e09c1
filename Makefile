# `make test`, `make lint` and `make demo` use the environment that the README's commands make.
PYTHON ?= .venv/bin/python

.PHONY: lint test demo

test:
	$(PYTHON) -m pytest

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

demo:
	$(PYTHON) -m alt_fast.train --compile --output runs/demo
	$(PYTHON) -m alt_fast.classify data/motion_shapes/unseen/00000.webm --checkpoint runs/demo
