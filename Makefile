# Every target makes what it needs: .venv from the hashed locks, then the project itself.
# Needed on the machine: Python 3.11+ with venv, and make.
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps
COMPILE := $(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate \
	--no-header --universal --python-version 3.11 $(if $(UPGRADE),--upgrade)
UNIT := $(addprefix tests/,test_idempotency.py test_money.py test_periods.py test_settings.py test_traces.py \
	agent/test_arguments.py agent/export proxy/access proxy/audit proxy/errors proxy/ledger proxy/rules \
	proxy/stripe proxy/stores/test_sqlite.py proxy/test_path_of_a_charge.py operators/reports)
# Whole files to each worker, in the order of tests/conftest.py: the long ones first.
PYTEST := -n auto --dist loadfile --no-loadscope-reorder
# All of these, and what is marked `prove` in them.
PROVE := $(addprefix tests/,scenarios faults hosts losses attacks every_door clients browser packaging)
SEEDS ?= 200
KILLS ?= 300
FAILOVERS ?= 10
FUZZ_SECONDS ?= 300
LITELLM := build/benchmarks/litellm/.ready

.DEFAULT_GOAL := help
.PHONY: up demo test unit dist check fmt lock prove simulate fuzz mutate bench docs export lambda bundle clean help

up: .venv/.run .venv/.project ## proxy, MCP, dashboard and sandbox (ARGS="--port 9000")
	$(BIN)/kb-mcp up $(ARGS)

demo: .venv/.run .venv/.project ## the three failure modes, without and with kb-mcp
	$(BIN)/kb-mcp demo $(ARGS)

test: .venv/.dev .venv/.project ## all tests (ARGS="tests/proxy -x")
	$(BIN)/python -m pytest $(PYTEST) $(ARGS)

unit: .venv/.dev .venv/.project ## the pure tests and one store, in seconds
	$(BIN)/python -m pytest --quiet $(PYTEST) $(UNIT) $(ARGS)

check: .venv/.dev .venv/.project ## format, lint, types, floors, exports, project rules
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/lint-imports --no-logo
	$(BIN)/kb-mcp export all --out schemas --check
	$(BIN)/python -m pytest --quiet tests/test_tidy.py

fmt: .venv/.dev ## format, and fix what ruff can fix
	$(BIN)/ruff check --fix --exit-zero
	$(BIN)/ruff format

lock: .venv/.python ## renew locks/ after a change in pyproject.toml (UPGRADE=1: newest versions)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet uv
	$(COMPILE) pyproject.toml --group dev -o locks/dev.txt
	# One .venv serves both: what runs is pinned as it is tested.
	$(COMPILE) pyproject.toml -c locks/dev.txt -o locks/run.txt
	$(COMPILE) --group build -c locks/dev.txt -o locks/build.txt
	$(COMPILE) --group fuzz -o locks/fuzz.txt
	$(COMPILE) --group bench -o locks/bench.txt
	$(COMPILE) --group lambda -c locks/dev.txt -o locks/lambda.txt
	# Clients that need an older mcp live in environments of their own (tests/clients).
	for name in strands langchain; do \
		$(COMPILE) tests/clients/$$name.in -o tests/clients/$$name.txt || exit 1; \
	done
	for name in tests/clients/others/locks/*.in; do \
		$(COMPILE) $$name -o $${name%.in}.txt || exit 1; \
	done
	$(COMPILE) benchmarks/litellm.in -o benchmarks/litellm.txt

prove: .venv/.dev .venv/.project ## what is long: many kills, hosts, attacks, every door (KILLS=300)
	KILLS=$(KILLS) HOST_KILLS=$(KILLS) SERVER_KILLS=20 FAILOVERS=$(FAILOVERS) \
		$(BIN)/python -m $(if $(ARGS),pytest,tests.last_runs prove) $(PYTEST) -m "" --timeout 3600 \
		$(or $(ARGS),$(PROVE))

clients: .venv/.dev .venv/.project ## other people's clients, each in its own environment: docs/clients.md
	$(BIN)/python -m tests.clients.others $(ARGS)

simulate: .venv/.dev .venv/.project ## whole histories under faults, from seeds (SEEDS=2000)
	$(BIN)/python -m tests.simulate --seeds $(SEEDS)

fuzz: .venv/.dev .venv/.project ## the property tests, long, then coverage-guided (FUZZ_SECONDS=300)
	$(BIN)/python -m pytest -n auto --timeout 0 --hypothesis-profile fuzz tests/agent tests/proxy
	$(INSTALL) --require-hashes -r locks/fuzz.txt
	$(BIN)/python tests/fuzz/surface.py -max_total_time=$(FUZZ_SECONDS)

mutate: .venv/.dev .venv/.project ## mutants of what decides about money (MODULES="decide policy")
	$(BIN)/mutmut run $(ARGS) $(MODULES:%='kb_mcp*.%.*')
	$(BIN)/python -m tests.mutants

bench: .venv/.dev .venv/.project $(if $(SMOKE),,$(LITELLM)) ## benchmarks, short (SMOKE=1 PLOTS=1)
	$(if $(PLOTS),$(INSTALL) --require-hashes -r locks/bench.txt)
	$(BIN)/python benchmarks/report.py $(if $(SMOKE),--smoke,--short) $(if $(PLOTS),--plots) $(ARGS)

docs: .venv/.dev .venv/.project ## the site, every link checked: build/site
	$(BIN)/python docs/reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

export: .venv/.run .venv/.project ## write schemas/
	$(BIN)/kb-mcp export all --out schemas

lambda: .venv/.python locks/lambda.txt ## the Bedrock Lambda function: dist/kb-mcp-lambda.zip
	$(BIN)/python deploy/bedrock/build_zip.py $(ARGS)

dist: .venv/.dev .venv/.project ## what a release uploads: wheel, sdist and bundle, checked
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(MAKE) bundle

bundle: .venv/.dev .venv/.project ## the bundle for desktop clients, with its wheels: dist/kb-mcp-billing.mcpb
	$(BIN)/python deploy/mcpb/build_bundle.py $(ARGS)

clean: ## remove caches and builds; .venv stays
	rm -rf build dist mutants .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f .coverage .coverage.*
	find kb_mcp tests -name __pycache__ -prune -exec rm -rf {} +

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

# An environment of its own, made once; where it can't be, charges.py leaves it out with a word.
$(LITELLM): benchmarks/litellm.txt | .venv/.dev .venv/.project
	-$(BIN)/python benchmarks/charges.py --set-up-litellm && touch $@

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "kb-mcp needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "This Python has no venv; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv --clear .venv
	@touch $@

.venv/.run: .venv/.python locks/run.txt
	@echo "Installing what kb-mcp runs on (locks/run.txt)"
	@$(INSTALL) --require-hashes -r locks/run.txt
	@touch $@

.venv/.dev: .venv/.python locks/dev.txt
	@echo "Installing what the tests and checks need (locks/dev.txt)"
	@$(INSTALL) --require-hashes -r locks/dev.txt
	@touch $@

# Editable, without isolation or index: the build backend comes from its own hashed lock.
.venv/.project: .venv/.python locks/build.txt pyproject.toml
	@$(INSTALL) --require-hashes -r locks/build.txt
	@$(BIN)/python -m pip uninstall --quiet --yes kb-mcp 2>/dev/null  # the name before 0.2.0
	@$(INSTALL) --no-index --no-build-isolation --editable .
	@touch $@
