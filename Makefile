# make demo | test | lint    Each sets itself up in .venv first. Needs make and Python >= 3.11; no root.
# PYTHON=python3.12 names another interpreter. A torch that is in .venv already is kept (README: CPU or CUDA).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ctguard-installed
TORCH := torch==2.13.0

.PHONY: demo test lint setup

demo: $(STAMP)
	rm -rf demo-out
	$(BIN)/ctguard demo --out demo-out

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(STAMP)

# torch comes first and alone, so that no looser request pulls in another build of it; the second step is told to
# keep the one that is there, whatever its version: as pip knows it, which torch.__version__ is not for PyPI's wheels.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install '$(TORCH)'
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >> $(VENV)/constraints.txt
	$(BIN)/python -m pip install -c $(VENV)/constraints.txt -e '.[test]'
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'ctguard needs Python >= 3.11: make PYTHON=python3.12 ...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
