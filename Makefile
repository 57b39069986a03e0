# Everything runs from a bare clone with Python 3.11 or newer; `make help` lists the targets.
# The first target that needs it creates .venv from a lock with hashes; pip's own settings (PIP_*, pip.conf) are respected.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV ?= $(firstword $(wildcard $(BIN)/uv) uv)
COMPILE := $(UV) pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --quiet
# Lanes hold frameworks for the tests of adapters; the platform of CI is enough for them, and only wheels are taken.
COMPILE_LANE := $(UV) pip compile pyproject.toml --extra gateway --python-version 3.11 --python-platform linux --only-binary :all: \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate --quiet

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test test-long check bench bench-peers bench-stores bench-adapters lock format docs matrix clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## a fleet, a gateway and a run to look at, offline; KEEP=1 leaves the gateway up
	@$(BIN)/nemo-agents demo $(if $(KEEP),--keep)

test: $(VENV)/.dev ## make check, then every test; ARGS="-k budget" is passed to pytest
	@$(BIN)/python .ci/check.py
	@.ci/install-system
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-long: $(VENV)/.dev ## the proofs with more seeds, kills and time: an hour or two; ARGS as for make test
	@.ci/install-system
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m long --timeout 7200 $(ARGS)

check: $(VENV)/.dev ## formatting, lint, types, import rules, links, generated docs, lock, dead code
	@$(BIN)/python .ci/check.py $(ARGS)

bench: $(VENV)/.dev ## the gateway against nginx on one core; ARGS="--seconds 1 --rounds 3" and more
	@.ci/install-system bench
	@$(BIN)/python benchmarks/run.py $(ARGS)

bench-peers: $(VENV)/.dev ## the gateway beside LiteLLM and Portkey, and where its time goes; ARGS="--seconds 1 --rounds 1"
	@.ci/install-system bench
	@.ci/install-system peers
	@$(BIN)/python benchmarks/peers.py $(ARGS)

bench-stores: $(VENV)/.dev ## what each store costs, SQLite and PostgreSQL, against the bare statements; ARGS="--seconds 1"
	@.ci/install-system
	@.ci/install-system bench
	@$(BIN)/python benchmarks/stores.py $(ARGS)

bench-adapters: $(VENV)/.dev ## what each installed adapter adds to a call of its framework; FRAMEWORKS=a Python that has them
	@$(or $(FRAMEWORKS),$(BIN)/python) benchmarks/adapters.py $(ARGS)

lock: ## resolve the dependencies anew into .ci/requirements*.txt (needs uv); ARGS=--upgrade for the newest
	@command -v $(UV) >/dev/null || { echo "make lock: uv is missing; install it, or: make lock UV=/path/to/uv" >&2; exit 1; }
	@$(COMPILE) --extra gateway --extra postgres --extra redis --extra tokenizer --group dev $(ARGS) -o .ci/requirements-dev.txt
	@$(COMPILE) --extra gateway --group build -c .ci/requirements-dev.txt --no-annotate -o .ci/requirements.txt
	@$(COMPILE) .ci/requirements-extras.in --extra litellm --extra bedrock --extra vertex --no-annotate $(ARGS) -o .ci/requirements-extras.txt
	@for lane in openai2 openai3 pyautogen; do $(COMPILE_LANE) .ci/requirements-lane-$$lane.in $(ARGS) -o .ci/requirements-lane-$$lane.txt || exit 1; done
	@$(COMPILE_LANE) .ci/requirements-lane-oldest.in --resolution lowest-direct $(ARGS) -o .ci/requirements-lane-oldest.txt
	@$(if $(wildcard $(VENV)/.dev),$(BIN)/python .ci/check_lock.py,echo "locked; make check verifies it")

format: $(VENV)/.dev ## format the code and mend what the linter can
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

matrix: $(VENV)/.dev ## run every adapter in its lanes and write the matrix of docs/reference/adapters.md anew
	@NEMO_MATRIX=write $(BIN)/python -m pytest -n 2 -q tests/adapters/test_lanes.py $(ARGS)
	@$(BIN)/python docs/generate.py

docs: $(VENV)/.dev ## regenerate docs/reference from the command tree, the settings and the matrix of adapters
	@$(BIN)/python docs/generate.py

clean: ## remove .venv, installed peers and every cache; leaves sources and your gateway's data alone
	@rm -rf $(VENV) benchmarks/.peers .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@.ci/make-venv "$(PYTHON)" "$(VENV)"

# The stamps are newer than what they were made from, so set-up runs once and again when the lock changes.
$(VENV)/.runtime: pyproject.toml .ci/requirements.txt | $(BIN)/python
	@.ci/install-python "$(BIN)/python" .ci/requirements.txt
	@touch $@

# The development set contains the runtime set at the same versions (.ci/check_lock.py holds it to that).
$(VENV)/.dev: pyproject.toml .ci/requirements-dev.txt .ci/requirements.txt | $(BIN)/python
	@.ci/install-python "$(BIN)/python" .ci/requirements-dev.txt
	@touch $(VENV)/.runtime $@
