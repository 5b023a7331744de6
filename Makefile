# `make demo` and `make test` do the whole set-up first (once; some ten
# minutes on two cores, since mmcv is compiled). `make setup` can be run
# again at any time: it repairs what is broken and leaves the rest alone.
#
#   PYTHON        a Python from 3.10 to 3.12 to build .venv with
#   DIR           for data-link: the folder that holds the data sets
#   WORKERS       number of parallel test processes
#   TESTS         what to test: files, folders or test ids
#   PYTEST_ARGS   further options, e.g. PYTEST_ARGS='-m "not slow"'

SHELL := /bin/sh
PYTHON ?=
WORKERS ?= 2
TESTS ?= tests $(wildcard projects/*/tests)
PYTEST_ARGS ?=

BIN := .venv/bin
REQUIREMENTS := $(wildcard tools/setup/requirements*.txt)
PROJECTS := $(wildcard projects/*/setup.py)
STAMP := .venv/.taskptq-setup-$(firstword $(shell cat setup.py $(REQUIREMENTS) $(PROJECTS) | cksum))

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow demo data-link lint clean

help:
	@echo 'make setup            create or repair .venv with pinned packages'
	@echo 'make demo             quantize a small detector and show the result'
	@echo 'make test             run all tests but the longest'
	@echo 'make test-slow        run the longest tests'
	@echo 'make data-link DIR=.. link data/ to the folder of the data sets'
	@echo 'make lint             ruff and mypy'
	@echo 'make clean            remove caches; keeps .venv and work_dirs'

setup:
	@sh tools/setup/setup.sh '$(STAMP)' '$(PYTHON)'

$(STAMP):
	@sh tools/setup/setup.sh '$(STAMP)' '$(PYTHON)'

test: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest \
		-n $(WORKERS) --dist worksteal \
		$(PYTEST_ARGS) $(TESTS)

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest \
		-n $(WORKERS) -m long $(PYTEST_ARGS) $(TESTS)

demo: $(STAMP)
	@$(BIN)/python projects/demo/run_demo.py

data-link:
	@sh tools/setup/data_link.sh '$(DIR)'

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build
	find $(wildcard taskptq tools tests configs projects) \
		-name __pycache__ -type d -prune -exec rm -rf {} +
