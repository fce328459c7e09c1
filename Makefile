# `make` targets use the environment that the README's commands make.
PYTHON ?= .venv/bin/python

.PHONY: bench bench-gpu ci demo docs format lint mutate racecheck report terminal test test-gpu

test:
	$(PYTHON) -m pytest -n 3

# Every kernel compiled on a GPU, against its reference; DALI's clips from NVDEC, against PyAV's.
test-gpu:
	TRITON_INTERPRET=0 $(PYTHON) -m pytest tests/kernels tests/data/test_dali.py tests/inference/test_cuda_graphs.py \
		--device cuda

# Races in shared memory, of the operators' tests on a GPU: compute-sanitizer is part of the CUDA toolkit.
racecheck:
	TRITON_INTERPRET=0 compute-sanitizer --tool racecheck --target-processes all --error-exitcode 1 \
		$(PYTHON) -m pytest tests/kernels/test_ops.py tests/kernels/test_match.py tests/kernels/test_merge.py \
		tests/kernels/test_attention.py tests/kernels/test_align.py -k "triton and not graph" --timeout 0 --device cuda

# Small breakages, each of which a test has to notice: a quarter of an hour on two cores.
mutate:
	$(PYTHON) -m tests.mutate

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

# All that has to pass: a new environment, the tests, the linters, on a clone of the last commit.
ci:
	.ci/run

# The API reference, from the docstrings: open build/docs/index.html.
docs:
	$(PYTHON) docs/build_api.py build/docs

# The README's picture of a terminal: runs the commands that it shows, about five minutes on one core.
terminal:
	$(PYTHON) docs/record_terminal.py docs/terminal.svg

# All benchmarks, on the GPU where there is one, into a result file of their own, which holds each race once it ends.
bench:
	$(PYTHON) -m pytest benchmarks/ --benchmark-only --results benchmarks/results/$$(date -u +%Y%m%d-%H%M%S).jsonl

# All that needs a GPU, into one result file; what would start after eight minutes is named as not measured.
bench-gpu:
	$(PYTHON) -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'bench-gpu needs a GPU; make bench runs anywhere')"
	$(PYTHON) -m pytest benchmarks/test_ops.py benchmarks/test_ladder.py benchmarks/test_encoder.py benchmarks/test_model.py \
		benchmarks/test_loader.py \
		--benchmark-only --time-limit 480 --results benchmarks/results/gpu-$$(date -u +%Y%m%d-%H%M%S).jsonl

# The READMEs' tables and a page of everything in benchmarks/results/.
report:
	$(PYTHON) -m benchmarks.report benchmarks/results/*.jsonl --out report.html --tables README.md benchmarks/README.md docs/audit.md docs/data.md docs/corpus.md docs/judge.md

demo:
	$(PYTHON) -m alt_fast train --compile --out runs/demo
	$(PYTHON) -m alt_fast classify data/motion_shapes/unseen/00000.webm --checkpoint runs/demo
