# Every way to run the project. A target sets up what it needs, in .venv; PYTHON=/path/to/python3 chooses what that is
# made with. Continuous integration runs these targets too.

VENV ?= .venv
SECONDS ?= 180
export VENV

bin := $(VENV)/bin
# What tests drive that is no Python package; a program, and the package it is in.
servers := redis-server=redis-server nginx=nginx pgbouncer=pgbouncer
# No run of pytest hangs for ever: at the end of this limit it prints the stacks of its threads. Each test has its own.
pytest := $(if $(shell command -v timeout),timeout --foreground --signal=ABRT --kill-after=30 40m) $(bin)/python -m pytest
# Pyright looks for Python in PATH. It need not say that there is a newer pyright: pyproject.toml names the version.
pyright := PATH="$(abspath $(bin)):$$PATH" PYRIGHT_PYTHON_IGNORE_WARNINGS=1 pyright

.DEFAULT_GOAL := help
.PHONY: help setup demo lint format types unit browser compat test oldest latest lock matrix bench compare soak failover docs clean

help: ## Say what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS='	' read -r name what; do \
		printf '  make %-9s %s\n' "$$name" "$$what"; done

demo: ## Run the example application on http://127.0.0.1:8080 (or PORT=...), or NODES=2 of it on one Valkey
	@scripts/setup demo
	@$(bin)/python -m example_app $(if $(NODES),--nodes $(NODES))

setup: ## Install what the other targets need
	@scripts/setup test lint

lint: setup ## Check style and format
	$(bin)/ruff check .
	$(bin)/ruff format --check .

format: setup ## Correct style and format, where that is possible
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

types: setup ## Check types, and that all public names have complete ones
	$(bin)/mypy
	$(pyright) --verifytypes aiohttp_interceptors --ignoreexternal

unit: setup ## Run the tests that need no browser
	@scripts/debian $(servers)
	$(pytest) -m "not browser"

browser: setup ## Run the tests in a real browser
	@scripts/debian chromium=chromium $(servers)
	$(pytest) -m browser

compat: setup ## Run aiohttp-sse's own tests on our class, and aiohttp's behind our middleware
	@scripts/aiohttp-sse-tests
	@scripts/aiohttp-tests

test: lint types compat ## Check everything: lint, types, all tests, coverage
	@scripts/debian chromium=chromium $(servers)
	$(pytest) --cov

oldest: ## Run the tests that need no browser with the oldest dependencies that are supported
	@VENV=$(VENV)-oldest OLDEST=1 scripts/setup test
	$(subst $(bin),$(VENV)-oldest/bin,$(pytest)) -m "not browser"

latest: ## Run the tests that need no browser with the newest release of everything, not with those of constraints.txt
	@VENV=$(VENV)-latest LATEST=1 scripts/setup test
	$(subst $(bin),$(VENV)-latest/bin,$(pytest)) -m "not browser"

lock: ## Renew constraints.txt: the newest release of everything, or only of NAMES="..."
	@scripts/lock $(NAMES)

matrix: ## Run the tests that need no browser with every Python that is there
	@scripts/matrix

bench: ## Run the benchmarks, one after the other
	@scripts/setup bench
	@scripts/fanout-peers
	@for program in $(filter-out %/compare.py,$(wildcard benchmarks/*.py)); do \
		echo "== $$program"; $(bin)/python "$$program" || exit 1; done

compare: ## Compare the benchmarks with those of REV (HEAD), in ROUNDS (10) rounds; NAMES="chain fanout:open", QUICK=1
	@scripts/setup bench
	$(bin)/python benchmarks/compare.py $(or $(REV),HEAD) --rounds $(or $(ROUNDS),10) $(if $(QUICK),--quick) $(NAMES)

soak: setup ## Have random clients do their worst to streams, then to a Hub, for SECONDS (180) each
	$(bin)/python tests/soak/soak.py --seconds $(SECONDS)
	$(bin)/python tests/soak/hub_soak.py --seconds $(SECONDS)

failover: setup ## Fail each broker over under load, and print what was lost, repeated and told; FAILOVER="--engine nats"
	@scripts/debian $(servers)
	$(bin)/python -m tests.soak.failover $(FAILOVER)

docs: ## Build the documentation into build/site
	@scripts/setup docs
	$(bin)/mkdocs build --strict --quiet

clean: ## Remove all that these targets made
	rm -rf example_app/history.sqlite3*
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-latest $(VENV)-3.* .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
