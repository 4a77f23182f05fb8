# The environment lies in .venv, or in the folder that VENV names.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: install install-cpu demo test test-all bench lint format clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

# A smaller environment for machines without a GPU; needs a CPU build of torch in pip's configured index.
install-cpu:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch==2.13.0" "torchvision==0.28.0"
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $(VENV)/.installed

demo: install
	$(BIN)/zoo demo --out demo

# a process and a thread for each core; the slow tests, some of which measure, run one after the other
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 8 --dist loadfile

test-all: test
	$(BIN)/python -m pytest -m slow

BENCHMARKS := quantize entropy rvq kmeans ema-step encode decode encode-audio decode-audio train-step recompute load data tokenize

# every case in a process of its own; one with a wrong result makes this fail, after the others
bench: install
	status=0; for case in $(BENCHMARKS); do \
		$(BIN)/zoo bench $$case --json benchmarks/results/$$case.jsonl || status=1; \
	done; exit $$status
	$(BIN)/python docs/generate.py

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache
