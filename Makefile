# Every target works on a fresh clone: it first makes .venv from constraints.txt.
# the first Python on PATH that is recent enough
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
# each runs services besides, which take another core
TEST_PROCESSES ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTS = $(BIN)/python -m pytest --dist=loadfile --no-loadscope-reorder
NATIVE_TESTS = $(BIN)/cmake -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DFIDDLER_NATIVE_TESTS=ON
# Exact pins, also for packages that an isolated build installs.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test fuzz sweep imitated-cuda compose-test sanitize interop kubernetes-test lint format bench kernel-plot orchestration-plot routing-picture protos observability settings locks will-it-run models clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(STAMP) ## Make .venv with everything in it

$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard fiddler/kernels/csrc/*.* fiddler/kernels/csrc/*/*)
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or later is not on PATH; set PYTHON to its path"; exit 1; }
	@echo "Installing into $(VENV): some minutes, and 1.5 GB with PyTorch's CPU build, 5 GB with its CUDA build ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	# Python compiles each of 13,000 files when it is first imported, most of them never
	$(BIN)/pip install --quiet --no-compile torch
	$(BIN)/pip install --quiet --no-compile --group dev --editable .
	@touch $@

demo: $(STAMP) ## Start both services on models/demo and stream a text
	$(BIN)/python -m examples.demo

# What fails (status 1) beside other files' tests is run again by itself, since a test of a service may time out where
# others keep the processors busy. What passes then is listed as UNSTABLE: such a test wants mending.
# Files start in the order of their names: large ones come early and those without a service last.
test: $(STAMP) ## Run the tests, of TEST_PROCESSES files at a time
	$(TESTS) --numprocesses=$(TEST_PROCESSES) || { [ $$? -eq 1 ] && $(TESTS) --last-failed --last-failed-no-failures=none; }

fuzz: $(STAMP) ## Run the property tests on examples that are drawn anew; for every night, not for every change
	$(TESTS) --numprocesses=$(TEST_PROCESSES) -m hypothesis --hypothesis-profile=fuzz

sweep: $(STAMP) ## Run every family through both services, and every format of coded weights
	$(BIN)/python -m pytest tests/families/sweep.py tests/families/coded_sweep.py -q \
		--numprocesses=$(TEST_PROCESSES) --dist=loadfile

imitated-cuda: $(STAMP) ## Run every family and every route on an imitated GPU, with every schedule; takes 30 minutes
	$(BIN)/python -m pytest tests/imitated_cuda/sweep.py -q --timeout=3600

compose-test: $(STAMP) ## Build the images and test compose.yaml; needs a Docker engine with Compose v2
	$(BIN)/python -m tests.compose

sanitize: $(STAMP) ## Run the native tests under the sanitizers of addresses, undefined behaviour and threads
	$(NATIVE_TESTS) -B build/sanitize -DFIDDLER_SANITIZE=address,undefined >/dev/null
	$(BIN)/cmake --build build/sanitize --target test_kernels test_decoding test_segment
	build/sanitize/test_kernels
	build/sanitize/test_decoding
	build/sanitize/test_segment
	$(NATIVE_TESTS) -B build/sanitize-threads -DFIDDLER_SANITIZE=thread >/dev/null
	$(BIN)/cmake --build build/sanitize-threads --target test_races
	build/sanitize-threads/test_races

# not `npm ci`, which fails if the lock file lacks an optional package of another platform
interop: $(STAMP) ## Test the pair with clients of others, and the dashboards with Grafana's types; needs node, Chromium, and npm's and PyPI's registries once
	cd tests/interop/node && npm install --no-save --silent
	cd tests/interop/grafana && npm ci --silent
	$(PYTHON) -m venv tests/interop/python/.venv
	PIP_CONSTRAINT= tests/interop/python/.venv/bin/pip install --quiet --requirement tests/interop/python/requirements.txt
	$(BIN)/python -m pytest tests/interop

kubernetes-test: $(STAMP) ## Render deploy/kubernetes and check it, without a cluster; needs PyPI once
	$(PYTHON) -m venv tests/kubernetes/.venv
	PIP_CONSTRAINT= tests/kubernetes/.venv/bin/pip install --quiet --requirement tests/kubernetes/requirements.txt
	$(BIN)/python -m pytest tests/kubernetes tests/test_kubernetes_files.py

lint: $(STAMP) ## Check style, types, the direction of imports, and the protocol
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf breaking --against $(wildcard protos/released/*.binpb)

format: $(STAMP) ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Run the benchmarks; results go to benchmarks/results
	$(BIN)/python -m benchmarks

kernel-plot: $(STAMP) ## Draw docs/kernel_scaling.svg from the results of benchmarks.kernel
	$(BIN)/python -m benchmarks.kernel.plot

orchestration-plot: $(STAMP) ## Draw docs/orchestration.svg from the results of benchmarks.orchestration
	$(BIN)/python -m benchmarks.orchestration.plot

routing-picture: $(STAMP) ## Run a pair through a change of topic; draw docs/routing.svg and docs/top.svg from its metrics
	$(BIN)/python -m benchmarks.routing --out benchmarks/results/routing.jsonl >/dev/null
	$(BIN)/python -m benchmarks.routing.plot

protos: $(STAMP) ## Generate fiddler/v1 from protos/fiddler/v1
	$(BIN)/python -m tools.protos

observability: $(STAMP) ## Write docs/metrics.md and Grafana's dashboards
	$(BIN)/python -m observability.generate

settings: $(STAMP) ## Write docs/settings.md from the services' settings
	$(BIN)/python -m tools.settings_page

locks: $(STAMP) ## Write requirements/*.lock from pyproject.toml and constraints.txt
	$(BIN)/python -m tools.locks

will-it-run: $(STAMP) ## Write docs/will_it_run.md and README's table from the sizes of published models
	$(BIN)/python -m tools.will_it_run

models: $(STAMP) ## Write docs/models.md from the table of families
	$(BIN)/python -m gpu_service.models --format markdown > docs/models.md.new
	mv docs/models.md.new docs/models.md

clean: ## Remove .venv and caches
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
