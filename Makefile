# Everything by name; `make` alone lists it. The virtual environment is made when first needed
# and again when pyproject.toml changes, with uv when there is one, else with venv and pip.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

NEED := (3, 11)
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < $(NEED))' 2>/dev/null && echo $$p && break; done)
VENV := .venv/bin
DARKPEARL := $(VENV)/darkpearl
SQL = $(wildcard sql/*.sql sql/*/*.sql)

.PHONY: help run demo token api listener test browser exercise clients test-server test-cell chaos restore rolling years model siege bulk crowd move cells linear mutants check bench soak fuzz format migrate openapi compiled \
	wheel clean db-start db-stop db-reset db-seed db-diff db-status db-url

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

run: .venv/run ## everything in one process: PostgreSQL, API, listener, a demo order; Ctrl-C stops
	@exec $(DARKPEARL) up

demo: .venv/run ## a few orders from start to end, one without stock, one declined
	@exec $(DARKPEARL) demo

api: .venv/run ## serve the HTTP API alone
	@exec $(DARKPEARL) api

listener: .venv/run ## run one listener alone
	@exec $(DARKPEARL) listener

test: .venv/dev ## the suite, on a PostgreSQL of its own
	@$(VENV)/pytest -q -n 3 --dist loadfile --ignore tests/browser $(PYTEST)

browser: .venv/dev ## the page, in Chromium: screens, states, keys, what it costs
	@$(VENV)/pytest -q -n 2 --dist load tests/browser $(PYTEST)

exercise: .venv/dev ## ten troubles, found by the doctor and on the page, and mended from there
	@$(VENV)/pytest -q -s tests/browser/exercise.py $(PYTEST)

clients: .venv/dev ## what others generate from docs/openapi.yaml, and linters of it; needs npm
	@if command -v npm >/dev/null; then \
		npm install --silent --no-audit --no-fund --no-package-lock --prefix tests/clients; \
	else echo 'npm is not to be had: what needs Node is left out' >&2; fi
	@$(VENV)/pytest -q tests/clients $(PYTEST)

# What goes by the server's version: its SQL, what runs at once, the model, the listener.
OF_THE_SERVER := tests/sql tests/race $(addprefix tests/saga/test_,$(addsuffix .py, \
	crash extending listener model plan_versions shop_model turned_clock))

test-server: .venv/dev ## the tests of the database, on other programs: BIN=/usr/lib/postgresql/15/bin
	@test -x '$(BIN)/postgres' || { echo 'BIN=… names the folder of a postgres, not "$(BIN)"' >&2; exit 2; }
	@DARKPEARL_TEST_BINARIES='$(BIN)' $(VENV)/pytest -q -n 2 --dist loadfile $(OF_THE_SERVER) $(PYTEST)

test-cell: .venv/dev ## the tests of the database as cell 2, whose ids, numbers and keys are its own
	@DARKPEARL_TEST_CELL=2 $(VENV)/pytest -q -n 2 --dist loadfile tests/sql $(PYTEST)

chaos: .venv/dev ## everything fails at once, then the books are compared; ORDERS=20000 for more
	@DARKPEARL_TEST_CHAOS_ORDERS=$(or $(ORDERS),5000) $(VENV)/pytest -q -s tests/saga/chaos.py

restore: .venv/dev ## a dump and a base backup, taken under load, restored and worked on; ORDERS=1000
	@DARKPEARL_TEST_RESTORE_ORDERS=$(or $(ORDERS),1000) $(VENV)/pytest -q -s tests/saga/restore.py

rolling: .venv/dev ## a new release under load, process by process; SECONDS=60, RATE=300 orders a second
	@DARKPEARL_TEST_ROLLING_SECONDS=$(or $(SECONDS),60) DARKPEARL_TEST_ROLLING_RATE=$(or $(RATE),300) \
		$(VENV)/pytest -q -s tests/saga/rolling.py

years: .venv/dev ## three years of a shop with the clock turned, retention on; ORDERS=1000 a day
	@DARKPEARL_TEST_YEARS_ORDERS=$(or $(ORDERS),100) $(VENV)/pytest -q -s tests/saga/years.py

model: .venv/dev ## the shop against a model of it, step by step; STEPS=50000, and the SEED of a run before
	@DARKPEARL_TEST_MODEL_STEPS=$(or $(STEPS),50000) DARKPEARL_TEST_MODEL_SEED=$(SEED) \
		$(VENV)/pytest -q -s tests/saga/test_shop_model.py $(PYTEST)

siege: .venv/dev ## all that a stranger can do at once, beside fifty customers; SECONDS=60
	@DARKPEARL_TEST_SIEGE_SECONDS=$(or $(SECONDS),60) $(VENV)/pytest -q -s tests/api/siege.py

bulk: .venv/dev ## a batch over STUCK=2000 sagas at PACE=100 a second, a listener killed, beside a shop that sells
	@DARKPEARL_TEST_STUCK=$(or $(STUCK),2000) DARKPEARL_TEST_PACE=$(or $(PACE),100) $(VENV)/pytest -q -s tests/saga/bulk.py

crowd: .venv/dev ## a quick webhook endpoint beside a hundred slow ones with a backlog; SECONDS=2 that they take
	@DARKPEARL_TEST_SLOW_SECONDS=$(or $(SECONDS),2) $(VENV)/pytest -q -s tests/webhooks/crowd.py $(PYTEST)

move: .venv/dev ## a warehouse moves to another cell under load, the command killed; ORDERS=20000, RATE=100 a second, KILLS=0
	@DARKPEARL_TEST_MOVE_ORDERS=$(or $(ORDERS),20000) DARKPEARL_TEST_MOVE_RATE=$(or $(RATE),100) DARKPEARL_TEST_MOVE_KILLS=$(or $(KILLS),1000) $(VENV)/pytest -q -s tests/cells/moving.py

cells: .venv/dev ## servers of cells die at every stage of a move and under load, their network is cut; SECONDS=60, ORDERS=20000, RATE=100
	@DARKPEARL_TEST_OUTAGE_SECONDS=$(or $(SECONDS),60) DARKPEARL_TEST_OUTAGE_ORDERS=$(or $(ORDERS),20000) DARKPEARL_TEST_OUTAGE_RATE=$(or $(RATE),100) $(VENV)/pytest -q -s tests/cells/outages.py $(PYTEST)

linear: .venv/dev ## sets of up to 64,000 rows, beside ORDERS=300000 orders: what is read stays in proportion
	@DARKPEARL_TEST_LINEAR=1000,4000,16000,64000 DARKPEARL_TEST_ORDERS=$(or $(ORDERS),300000) \
		$(VENV)/pytest -q tests/sql/test_linear.py $(PYTEST)

mutants: .venv/mutants ## take guards away one at a time: does the suite notice? ARGS="--number 50 --seed 2"
	@$(VENV)/python tests/mutants $(ARGS)

check: .venv/dev ## lint, formatting, types, SQL lint, schema drift
	@$(VENV)/ruff check --quiet .
	@$(VENV)/ruff format --check --quiet .
	@$(VENV)/mypy --no-error-summary
	@$(VENV)/squawk $(SQL)
	@$(DARKPEARL) db drift

bench: .venv/dev ## measure; ARGS="drain --rounds 5" chooses (docs/performance.md says what)
	@$(VENV)/python -m bench $(ARGS)

soak: .venv/dev ## API and listener under load for MINUTES (30): memory must stay flat
	@$(VENV)/python -m bench soak --minutes $(or $(MINUTES),30)

format: .venv/dev ## write the formatting that check wants
	@$(VENV)/ruff format --quiet .
	@$(VENV)/ruff check --quiet --fix .

migrate: .venv/run ## bring the database to the newest schema
	@$(DARKPEARL) db migrate

token: .venv/run ## a token for the API; ARGS="--role authenticated --sub …" says for whom
	@$(DARKPEARL) token $(ARGS)

db-start: .venv/run ## start the embedded PostgreSQL and leave it running
	@$(DARKPEARL) db start

db-stop: .venv/run ## stop it
	@$(DARKPEARL) db stop

db-reset: .venv/run ## throw the data away, migrate, seed
	@$(DARKPEARL) db reset --yes

db-seed: .venv/run ## load the demo data
	@$(DARKPEARL) db seed

db-diff: .venv/run ## what sql/schema has that sql/migrations doesn't make, and the reverse
	@$(DARKPEARL) db drift

db-status: .venv/run ## migrations applied and pending, server version
	@$(DARKPEARL) db status

db-url: .venv/run ## the address for psql
	@$(DARKPEARL) db url

openapi: .venv/run ## write docs/openapi.yaml
	@$(DARKPEARL) openapi > docs/openapi.yaml

fuzz: .venv/dev ## long: requests made up from the API's description, as each role
	@DARKPEARL_TEST_EXAMPLES=$(or $(EXAMPLES),200) $(VENV)/pytest -q tests/api/test_schema.py $(PYTEST)

compiled: .venv/dev ## write sql/compiled, what the plans have the fast path call
	@DARKPEARL_TEST_WRITE_COMPILED=1 $(VENV)/pytest -q tests/sql/test_fast_path.py -k compiled_calls_are

wheel: .venv/run ## build dist/*.whl
	@if command -v uv >/dev/null; then uv build --quiet --wheel; \
	else $(VENV)/python -m pip wheel --quiet --no-deps --wheel-dir dist .; fi

clean: ## remove what make and the tools made; the data in .darkpearl stays
	@rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/run: EXTRAS := embedded
.venv/dev: EXTRAS := embedded,dev
.venv/mutants: EXTRAS := embedded,dev,mutants

.venv/run .venv/dev .venv/mutants: pyproject.toml | $(VENV)/python
	@echo 'installing into .venv, once: $(EXTRAS)'
	@if command -v uv >/dev/null; then \
		uv pip install --quiet --python $(VENV)/python -e '.[$(EXTRAS)]'; \
	else \
		$(VENV)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'; \
	fi
	@touch .venv/run $@

$(VENV)/python:
	@if command -v uv >/dev/null; then \
		uv venv --quiet --python '>=3.11' .venv; \
	elif [ -z '$(PYTHON)' ]; then \
		echo 'darkpearl needs Python 3.11 or newer, or uv; found $(shell python3 --version 2>&1)' >&2; exit 1; \
	else \
		'$(PYTHON)' -m venv .venv >/dev/null 2>&1 || { rm -rf .venv; \
			echo "$(PYTHON) can't make a virtual environment (Debian: apt install python3-venv)" >&2; exit 1; }; \
	fi
