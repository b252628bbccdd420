VENV ?= .venv
PYTHON ?= python3
JOBS ?= 2

.PHONY: demo test lint format bench

demo: $(VENV)/installed  ## key, encryption, training, queries, on real digits: a few minutes on a CPU
	$(VENV)/bin/python scripts/demo.py --output demo

test: $(VENV)/installed  ## the whole test suite, JOBS files at a time
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses $(JOBS) --dist loadfile

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy hf_neuracrypt scripts

format: $(VENV)/installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/installed
	$(VENV)/bin/python scripts/experiments/benchmark.py encoder

$(VENV)/installed: pyproject.toml tests/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint tests/constraints.txt --upgrade pip  # the first that knows --group is 25.1
	$(VENV)/bin/pip install --quiet --constraint tests/constraints.txt --group dev --editable '.[demo]'
	touch $@
