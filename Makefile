# Two commands on a fresh machine: `make demo` and `make test`. Both make `.venv` first, with everything pinned.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: help setup demo test lint shapes-accuracy digests clean

help:
	@echo "make setup            make .venv with darkroom in it"
	@echo "make demo             render the demonstration into renders/demo"
	@echo "make test             lint, types and tests"
	@echo "make shapes-accuracy  how often the built-in model draws what it was told"
	@echo "make digests          whether the demo's pictures are the same bytes however they are rendered"
	@echo "make clean            remove .venv and what tests left"

setup: $(READY)

# torch first and alone: pinned, so that nothing resolves another build of it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools datasets duckdb hypothesis mypy pytest ruff types-psutil types-PyYAML webdataset
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e .
	@touch $@

demo: setup
	$(BIN)/darkroom manifest build manifests/demo.csv manifests/demo.parquet
	$(BIN)/darkroom plan jobs/demo.yaml
	$(BIN)/darkroom render jobs/demo.yaml
	$(BIN)/darkroom status renders/demo
	@echo
	@echo "Look into renders/demo/images; renders/demo/metadata.parquet says which image is what."

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The S3 server of the tests has an environment of its own, made once.
test: lint
	$(BIN)/python -m tests.servers.swift_install
	$(BIN)/python -m pytest -q

shapes-accuracy: setup
	$(BIN)/python -m benchmarks.shapes_accuracy

digests: setup
	$(BIN)/python -m benchmarks.digests

clean:
	rm -rf $(VENV) .work .mypy_cache .ruff_cache .pytest_cache .hypothesis
