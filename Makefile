# `make setup`, `make demo`, `make test`, `make bench` from a fresh clone. VENV=path uses an environment of your own.
VENV ?= .venv
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
STAMP := $(VENV)/.medssl-$(shell $(PYTHON) -c "import hashlib; print(hashlib.sha256((open('pyproject.toml').read() + '$(CURDIR)').encode()).hexdigest()[:12])")

.PHONY: setup demo test lint bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'medssl needs Python 3.11 or newer')"
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -c "open('$(STAMP)', 'w').close()"

demo: setup
	$(BIN)/python -m medssl demo --out demo-out

lint: setup
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

test: setup lint
	$(BIN)/python -m pytest

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf demo-out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
