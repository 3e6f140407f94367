# Two commands, each enough on a machine with Python (3.11 or newer) and make.
#   make quickstart   installs into .venv and trains a small network on embedded images
#   make test         installs into .venv and runs the tests
PYTHON ?= python3
BIN = .venv/bin

.PHONY: quickstart test lint clean

quickstart: .venv/installed
	$(BIN)/python -m jaxcifar.main --config=configs/quickstart.py

test: .venv/installed-test
	$(BIN)/python -m pytest -n auto

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv
