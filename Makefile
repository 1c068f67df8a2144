# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow test-gpu test-browser lint install

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch numpy
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,scaling]"
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/groundthink demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes: the tests run on one thread each, and CI has two cores.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What needs minutes, a GPU or a browser. Each fails where its tool is missing: nothing is skipped silently.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --timeout=1800

# Kernels are compiled for minutes: `make test-gpu JOBS=8` shares that out where the GPU has memory for eight.
test-gpu:
	TRITON_INTERPRET=0 $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m pytest -m gpu --timeout=1800 \
		-n $(or $(JOBS),0) --dist worksteal tests/gpu

test-browser: $(STAMP)
	$(BIN)/python -m pytest -m browser
