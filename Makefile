# make help lists the targets. Each one makes .venv and installs what it needs, once.
#
#   make PYTHON=python3.12 test        another Python, 3.11 to 3.13
#   make TORCH_INDEX=https://download.pytorch.org/whl/cpu demo
#                                      on Linux: the CPU build of PyTorch instead of the CUDA one, gigabytes smaller

PYTHON ?= python3
TORCH_INDEX ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH := $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' constraints.txt)
PROJECT := pyproject.toml constraints.txt

BENCH_OUT ?= results/$(shell date +%Y-%m-%d)_benchmarks_$(shell getconf _NPROCESSORS_ONLN)-core-cpu

.PHONY: help demo bench bench-full test test-four-bit test-lm-eval lint clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F '|' '{ printf "%-18s %s\n", $$1, $$2 }'

demo: $(VENV)/.installed ## hide facts in a text of a million tokens, read it once, ask for them
	$(BIN)/rmt demo $(DEMO_ARGS)

bench: $(VENV)/.installed ## speed and memory beside their peers, texts of up to 65,536 tokens, on the CPU; a quarter of an hour
	$(BIN)/python -m benchmarks --out $(BENCH_OUT) $(BENCH_ARGS)

bench-full: $(VENV)/.installed ## the same with texts of up to a million tokens; hours
	$(BIN)/python -m benchmarks --max-tokens 1000000 --budget 120 --out $(BENCH_OUT)-1M $(BENCH_ARGS)

# One thread for each of the two test processes: more threads than cores make small models slower, not faster.
test: $(VENV)/.installed-test ## run the tests, all but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q -m "not slow" $(PYTEST_ARGS)

test-four-bit: $(VENV)/.installed-four-bit ## the tests of backbones in 4 bits; needs bitsandbytes, 43 MB
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/training/test_four_bits.py tests/cli/test_train_four_bits.py

test-lm-eval: $(VENV)/.installed-lm-eval ## the tests of the adapter for lm-evaluation-harness; half a gigabyte to install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/evaluation/test_lm_harness.py $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev ## ruff, its formatter and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean: ## remove .venv, caches and build products
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("$(PYTHON) is Python %d.%d; recurrent-memory needs 3.11, 3.12 or 3.13: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# PyTorch goes alone, so that TORCH_INDEX concerns nothing else. setuptools, which PyTorch needs anyway, builds the
# project: without a build environment of its own, nothing is installed that constraints.txt does not pin.
$(VENV)/.installed: $(PROJECT) | $(BIN)/python
	@echo "Installing into $(VENV), once; it takes a minute or two."
	@test -n "$(TORCH_INDEX)" || test "$$(uname -s)" != Linux || \
	  echo "If pip fetches the CUDA build of PyTorch (gigabytes) and you want the CPU one, see the top of the Makefile."
	$(PIP) install -c constraints.txt setuptools
	$(PIP) install --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(PIP) install -c constraints.txt --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[test]'
	@touch $@

$(VENV)/.installed-four-bit: $(VENV)/.installed-test
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[test,four-bit]'
	@touch $@

$(VENV)/.installed-lm-eval: $(VENV)/.installed-test
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[test,lm-eval]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@
