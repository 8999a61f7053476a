# Two commands on a fresh machine with Python 3.11 or newer: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
# A file's tests stay together, so that what they share is trained once; files run in the order of tests/conftest.py.
# PARALLEL= runs one after another.
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder
TYPES := $(BIN)/mypy && $(BIN)/lint-imports
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: demo test check lint slow clean

demo: .venv/installed
	$(BIN)/reducible sweep recipes/demo.yaml

# The slower checks run beside the tests, and say what they found when the tests are done. Both must pass.
test: lint
	@{ $(TYPES); } >.venv/types.log 2>&1 & types=$$!; \
	$(BIN)/python -m pytest -q $(PARALLEL); tests=$$?; \
	wait $$types; types=$$?; cat .venv/types.log; exit $$((tests ? tests : types))

check: lint
	$(TYPES)

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

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
