# All commands of the project. Each target installs what it needs into .venv, with PYTHON=/path/to/python3 if set.
# Continuous integration runs the same targets.

VENV ?= .venv
SECONDS ?= 180
export VENV

bin := $(VENV)/bin
# Programs that the tests need and their Debian packages.
servers := redis-server=redis-server nginx=nginx pgbouncer=pgbouncer curl=curl node=nodejs
proxies := haproxy=haproxy apache2=apache2 caddy=caddy varnishd=varnish systemd-socket-activate=systemd ip=iproute2
# A limit for a whole run of pytest, which then prints the stacks of its threads. Each test has its own limit as well.
pytest := $(if $(shell command -v timeout),timeout --foreground --signal=ABRT --kill-after=30 65m) $(bin)/python -m pytest
# Pyright looks for Python in PATH. Its version is pinned in pyproject.toml, so it need not announce newer ones.
pyright := PATH="$(abspath $(bin)):$$PATH" PYRIGHT_PYTHON_IGNORE_WARNINGS=1 pyright

.DEFAULT_GOAL := help
.PHONY: help setup demo lint format types unit browser compat test package oldest latest lock matrix bench compare soak failover fuzz docs clean

help: ## List the targets
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

format: setup ## Fix style and format
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

types: setup ## Check types, that all public names are completely typed, and what they refuse
	$(bin)/mypy
	$(pyright) --verifytypes aiohttp_interceptors --ignoreexternal
	$(bin)/python -m tests.typing.check

unit: setup ## Run the tests that do not need a browser
	@scripts/debian $(servers) $(proxies)
	$(pytest) -m "not browser"

browser: setup ## Run the tests in a browser
	@scripts/setup docs
	@scripts/debian chromium=chromium $(servers) $(proxies)
	$(pytest) -m browser

compat: setup ## Run the tests of aiohttp-sse with EventStreamResponse, and those of aiohttp with our middleware
	@scripts/aiohttp-sse-tests
	@scripts/aiohttp-tests

test: lint types docs compat ## Check everything: lint, types, documentation, all tests, coverage
	@scripts/debian chromium=chromium $(servers) $(proxies)
	$(pytest) --cov

package: setup ## Build the distributions in dist/, and try the wheel with each extra alone, in environments of their own
	@scripts/package

oldest: ## Run `make unit` with the oldest supported dependencies
	@VENV=$(VENV)-oldest OLDEST=1 scripts/setup test
	$(subst $(bin),$(VENV)-oldest/bin,$(pytest)) -m "not browser"

latest: ## Run `make unit` with the newest release of all dependencies
	@VENV=$(VENV)-latest LATEST=1 scripts/setup test
	$(subst $(bin),$(VENV)-latest/bin,$(pytest)) -m "not browser"

lock: ## Update constraints.txt: all dependencies, or only NAMES="..."
	@scripts/lock $(NAMES)

matrix: ## Run `make unit` with every installed Python
	@scripts/matrix

bench: ## Run the benchmarks
	@scripts/setup bench
	@scripts/fanout-peers
	@for program in $(filter-out %/compare.py,$(wildcard benchmarks/*.py)); do \
		echo "== $$program"; $(bin)/python "$$program" || exit 1; done

compare: ## Compare the benchmarks with those of REV (HEAD), in ROUNDS (10) rounds; NAMES="chain fanout:open", QUICK=1
	@scripts/setup bench
	$(bin)/python benchmarks/compare.py $(or $(REV),HEAD) --rounds $(or $(ROUNDS),10) $(if $(QUICK),--quick) $(NAMES)

soak: setup ## Run misbehaving clients of streams, then of a Hub, for SECONDS (180) each
	$(bin)/python -m tests.soak.soak --seconds $(SECONDS)
	$(bin)/python -m tests.soak.hub_soak --seconds $(SECONDS)

fuzz: setup ## Send EXAMPLES (5000) random requests, bodies and entries of a log to each fuzzer
	FUZZ_EXAMPLES=$(or $(EXAMPLES),5000) $(pytest) --timeout=3600 tests/hostile

failover: setup ## Fail over each broker under load, and print what was lost or repeated; FAILOVER="--engine nats"
	@scripts/debian $(servers)
	$(bin)/python -m tests.soak.failover $(FAILOVER)

docs: ## Build the documentation in build/site, and check its links
	@scripts/setup docs
	PATH="$(abspath $(bin)):$$PATH" NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --strict

clean: ## Remove everything that these targets created
	rm -rf example_app/history.sqlite3*
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-latest $(VENV)-3.* .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
