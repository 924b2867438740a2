# Every target sets up what it needs: a fresh clone, Python 3.11 or newer, make and a package index are enough.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NOVA_VENV ?= .venv-nova
NOVA_BIN := $(NOVA_VENV)/bin
NOVA_STAMP := $(NOVA_VENV)/.installed
REQUESTS ?= 1000000
REQUIREMENTS := setup.cfg setup.py pyproject.toml requirements.txt

.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo "make demo                run the demo: two cells, real HTTP requests, a table of what went where"
	@echo "make serve               leave the demo running, for curl"
	@echo "make test                run the tests, with servers of their own where none answers; skip what is not installed"
	@echo "make test-operator       run the operator's commands on servers, and those of the operator's guide"
	@echo "make test-brokers        run the tests on brokers of their own: a cluster, TLS, one that is down"
	@echo "make test-faults         run the tests in which servers of their own are killed, frozen and replaced, under load"
	@echo "make test-nova           run the tests in a real Nova, on SQLite and then on the servers, in an environment of its own"
	@echo "make check               run all that a change has to pass besides the tests and the demo:"
	@echo "  make lint                ruff: mistakes, form, and the licence on top of each file"
	@echo "  make types               mypy, in its strict mode"
	@echo "  make layers              no module imports from its own layer or from above"
	@echo "  make check-sample        the sample configuration file has the options of the code"
	@echo "  make check-releasenotes  the release notes can be read"
	@echo "  make package             build an sdist and a wheel into dist, and see that they are complete"
	@echo "  make docs                build the manual into doc/build/html; a warning is an error"
	@echo "make format              let ruff give the code its form"
	@echo "make sample              write etc/cellmw/cellmw.conf.sample anew, from the options of the code"
	@echo "make releasenotes        print the release notes"
	@echo "make bench               measure what a request costs"
	@echo "make bench-rpc           measure what a message costs"
	@echo "make bench-listing       measure what a list over many cells costs, one of which hangs, and a million rows in pages"
	@echo "make bench-map           measure what it takes to map a million instances, and to verify them, on the servers"
	@echo "make bench-faults        measure what a server that is taken away costs, before and in the fault"
	@echo "make bench-nova          measure the filter, and a list, beside what Nova does in their place"
	@echo "make oracle              route a million requests, each answer checked; takes most of an hour"
	@echo "make clean               remove the environment and everything that was built"

# The file is written last, so an installation that failed half-way is done again.
$(STAMP): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: try make PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=23'
	$(BIN)/python -m pip install --quiet --editable '.[mysql,postgresql,demo,fixture,cache,castellan,test,check,docs,graph]'
	@touch $@

# On servers: make demo API_DB=URL CELL1_DB=URL CELL1_MQ=URL, and CELL0_DB, CELL2_DB, CELL2_MQ; make serve likewise.
# make puts what its command line sets into the environment, where the demo finds it.
.PHONY: demo
demo: $(STAMP)
	$(BIN)/python -m examples.compute.demo

.PHONY: serve
serve: $(STAMP)
	$(BIN)/python -m examples.compute.demo --serve

# The files in their own order: else the ones with the fewest tests, which take longest, would begin when all else is done.
.PHONY: test
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder tests \
		--ignore tests/nova --ignore tests/faults --ignore tests/services/brokers --ignore tests/operator

.PHONY: test-operator
test-operator: $(STAMP)
	$(BIN)/python -m pytest -n auto tests/operator

.PHONY: test-brokers
test-brokers: $(STAMP)
	$(BIN)/python -m pytest tests/services/brokers

# Times are bounds in them, so not on each processor: servers under load, and their clients, need some, too.
.PHONY: test-faults
test-faults: $(STAMP)
	$(BIN)/python -m pytest -n 3 --dist loadfile tests/faults

# Nova brings its own versions of much that cellmw uses.
$(NOVA_STAMP): $(REQUIREMENTS)
	test -x $(NOVA_BIN)/python || $(PYTHON) -m venv $(NOVA_VENV)
	$(NOVA_BIN)/python -m pip install --quiet --upgrade 'pip>=23'
	$(NOVA_BIN)/python -m pip install --quiet --editable '.[mysql,postgresql,demo,fixture,test,nova]'
	@touch $@

.PHONY: test-nova
test-nova: $(NOVA_STAMP)
	$(NOVA_BIN)/python -m pytest -n auto --dist loadfile tests/nova --deployment sqlite
	$(NOVA_BIN)/python -m pytest -n auto --dist loadfile tests/nova --deployment servers

.PHONY: check
check: lint types layers check-sample check-releasenotes package docs

.PHONY: lint
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: $(STAMP)
	$(BIN)/ruff format .

.PHONY: types
types: $(STAMP)
	$(BIN)/mypy

.PHONY: layers
layers: $(STAMP)
	$(BIN)/lint-imports

.PHONY: check-sample
check-sample: $(STAMP)
	$(BIN)/python tools/check_sample.py

.PHONY: sample
sample: $(STAMP)
	$(BIN)/oslo-config-generator --config-file etc/cellmw/cellmw-config-generator.conf \
		--output-file etc/cellmw/cellmw.conf.sample

.PHONY: package
package: $(STAMP)
	$(BIN)/python tools/check_package.py

.PHONY: check-releasenotes
check-releasenotes: $(STAMP)
	$(BIN)/reno --quiet lint || \
		{ echo "If this is a shallow clone: reno needs the whole history, git fetch --unshallow" >&2; exit 1; }

.PHONY: releasenotes
releasenotes: check-releasenotes
	$(BIN)/reno --quiet report

.PHONY: docs
docs: $(STAMP)
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html doc/source doc/build/html

.PHONY: bench
bench: $(STAMP)
	$(BIN)/python -m bench.request

.PHONY: bench-rpc
bench-rpc: $(STAMP)
	$(BIN)/python -m bench.rpc

.PHONY: bench-listing
bench-listing: $(STAMP)
	$(BIN)/python -m bench.listing

.PHONY: bench-map
bench-map: $(STAMP)
	$(BIN)/python -m bench.mapping

.PHONY: bench-faults
bench-faults: $(STAMP)
	$(BIN)/python -m bench.faults

.PHONY: bench-nova
bench-nova: $(NOVA_STAMP)
	$(NOVA_BIN)/python -m bench.vs_nova
	$(NOVA_BIN)/python -m bench.listing cells

.PHONY: oracle
oracle: $(STAMP)
	CELLMW_TEST_ORACLE_REQUESTS=$(REQUESTS) $(BIN)/python -m pytest tests/functional/test_routing_oracle.py

.PHONY: clean
clean:
	rm -rf $(VENV) $(NOVA_VENV) .tox dist build doc/build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	rm -f AUTHORS ChangeLog RELEASENOTES.rst releasenotes/notes/reno.cache
