VENV ?= .venv
PYTHON ?= python3

.PHONY: demo test lint format bench

demo: $(VENV)/installed  ## key, encryption, training, queries, on real digits: a few minutes on a CPU
	$(VENV)/bin/python scripts/walkthrough.py --output demo

test: $(VENV)/installed  ## the whole test suite
	$(VENV)/bin/python -m pytest

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/installed
	$(VENV)/bin/python scripts/benchmark.py encoder

$(VENV)/installed: pyproject.toml tests/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint tests/constraints.txt --editable '.[demo,test]'
	touch $@
