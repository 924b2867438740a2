# Every target sets up what it needs: a fresh clone, Python 3.11 or newer, make and a package index are enough.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
REQUIREMENTS := setup.cfg setup.py pyproject.toml requirements.txt

.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo "make demo    run the demo: two cells, real HTTP requests, a table of what went where"
	@echo "make serve   leave the demo running, for curl"
	@echo "make test    run the tests; those that need a server skip where it does not answer"
	@echo "make check   run the linters, the type checker, the layers contract and the docs build"
	@echo "make bench   measure what a request costs"
	@echo "make docs    build the manual into doc/build/html"
	@echo "make clean   remove the environment and everything that was built"

# The file is written last, so an installation that failed half-way is done again.
$(STAMP): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: try make PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=23'
	$(BIN)/python -m pip install --quiet --editable '.[mysql,postgresql,demo,test,check,docs]'
	@touch $@

.PHONY: demo
demo: $(STAMP)
	$(BIN)/python -m examples.compute.demo

.PHONY: serve
serve: $(STAMP)
	$(BIN)/python -m examples.compute.demo --serve

.PHONY: test
test: $(STAMP)
	$(BIN)/python -m pytest tests

.PHONY: check
check: $(STAMP) docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: docs
docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -b html doc/source doc/build/html

.PHONY: bench
bench: $(STAMP)
	$(BIN)/python -m bench.request

.PHONY: clean
clean:
	rm -rf $(VENV) doc/build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
