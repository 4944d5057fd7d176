# Two commands on a fresh machine: `make demo` and `make test`. Both make `.venv` first, with everything pinned.
# On a machine without an NVIDIA GPU: `make demo TORCH=cpu`, which fetches less.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
DEVELOPMENT := $(VENV)/ready-for-development
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Where torch comes from. Empty: from PyPI, whose build for Linux is the one for CUDA. `TORCH=cpu` takes the index of
# CPU builds that the container image takes.
TORCH ?=
$(if $(filter-out cpu,$(TORCH)),$(error TORCH is `cpu`, or empty; it is `$(TORCH)`))
TORCH_INDEX ?= $(if $(filter cpu,$(TORCH)),$(shell sed -n 's/^ARG TORCH_INDEX=//p' cluster/Dockerfile))

.PHONY: help setup demo test parity compiled explore faults cluster exits lint shapes-accuracy digests rules clean

help:
	@echo "make setup            make .venv with darkroom in it"
	@echo "make demo             render the demonstration into renders/demo"
	@echo "make test             lint, types and tests"
	@echo "make parity           every family, scheduler and option against diffusers: docs/parity.md"
	@echo "make compiled         every family compiled: one graph, no recompilation"
	@echo "make explore          the property tests once more, with examples nobody has seen"
	@echo "make faults           the scoreboard of docs/reliability.md: kills, faults, tampering"
	@echo "make cluster          a job on three nodes of this machine, one killed, one added; benchmarks that start a Ray"
	@echo "make exits            every verb that reads Parquet 100 times: exit code 0 each time"
	@echo "make shapes-accuracy  how often the built-in model draws what it was told"
	@echo "make digests          whether the demo's pictures are the same bytes however they are rendered"
	@echo "make rules            copy the rules of cluster/prometheus into the Kubernetes files"
	@echo "make clean            remove .venv and what tests left"

setup: $(READY)

# torch first and alone: pinned, so that nothing resolves another build of it. An index of CPU builds need not have its
# dependencies in our versions, so the next line takes them from PyPI; setuptools, which builds Darkroom, is one of them.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing packages: some minutes, depending on your connection. The largest is torch."
	$(PIP) install -c constraints.txt $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX)) torch
	$(PIP) install -c constraints.txt setuptools torch
	$(PIP) install -c constraints.txt --no-build-isolation -e .
	@touch $@

# What only tests, types and benchmarks need.
$(DEVELOPMENT): $(READY)
	@echo "Installing the tools of those who work on Darkroom."
	$(PIP) install -c constraints.txt datasets duckdb hypothesis jsonschema mypy playwright pytest pytest-xdist ruff sd-parsers types-psutil types-PyYAML webdataset
	# Apart: diffusers would import it in every process.
	$(PIP) install -c constraints.txt --no-deps --upgrade --target $(VENV)/torchao torchao
	@touch $@

demo: setup
	$(BIN)/darkroom manifest build manifests/demo.csv manifests/demo.parquet
	$(BIN)/darkroom plan jobs/demo.yaml
	$(BIN)/darkroom render jobs/demo.yaml
	$(BIN)/darkroom status renders/demo
	@echo
	@echo "The images are in renders/demo/images; renders/demo/metadata.parquet says which is what."
	@echo
	$(BIN)/darkroom contact-sheet renders/demo

lint: $(DEVELOPMENT)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# What `make cluster` runs.
LONGER := tests/cluster/test_leaving.py tests/cluster/test_benchmarks.py

# The S3 server of the tests has an environment of its own, made once.
test: lint
	$(BIN)/python -m tests.servers.swift_install
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(LONGER:%=--ignore %)

# Takes up again where it was cut off.
parity: $(DEVELOPMENT)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.rendering.parity_table

compiled: $(DEVELOPMENT)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.rendering.compiled_families

explore: $(DEVELOPMENT)
	$(BIN)/python -m tests.servers.swift_install
	$(BIN)/python -m pytest -q -m hypothesis --hypothesis-profile explore

# Half an hour and more: real processes are killed.
faults: $(DEVELOPMENT)
	$(BIN)/python -m tests.servers.swift_install
	$(BIN)/python -m tests.faults

# A Ray head and nodes on loopback, ten processes and more; a few minutes.
cluster: $(DEVELOPMENT)
	$(BIN)/python -m tests.cluster
	$(BIN)/python -m pytest -q $(LONGER)

# Some twenty minutes.
exits: $(DEVELOPMENT)
	$(BIN)/python -m tests.exits

shapes-accuracy: $(DEVELOPMENT)
	$(BIN)/python -m benchmarks.shapes_accuracy

digests: $(DEVELOPMENT)
	$(BIN)/python -m benchmarks.digests

# A PrometheusRule has the groups of a rule file below `spec`.
RULE := cluster/kuberay/base/prometheusrule.yaml

rules:
	{ sed '/^spec:/q' $(RULE); sed -n '/^groups:/,$$p' cluster/prometheus/rules.yml | sed 's/./  &/'; } > $(RULE).new
	mv $(RULE).new $(RULE)

clean:
	rm -rf $(VENV) .work .mypy_cache .ruff_cache .pytest_cache .hypothesis
