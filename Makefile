# Two commands on a fresh machine with Python 3.11 or newer: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
# A file's tests stay together, so that what they share is trained once; files run in the order of tests/conftest.py.
# PARALLEL= runs one after another.
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: demo test check slow clean

demo: .venv/installed
	$(BIN)/reducible sweep recipes/demo.yaml

test: check
	$(BIN)/python -m pytest -q $(PARALLEL)

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: .venv/installed
	$(BIN)/python -m pytest -q -m slow $(PARALLEL)

# The stamp comes last: an installation that broke off is done again.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "reducible needs Python 3.11 or newer; say which: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -d reducible/data || { echo "reducible/ holds symbolic links, and this checkout has none; give: " \
		"git config core.symlinks true && git checkout -- reducible" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	@touch $@

clean:
	rm -rf .venv .reducible
