# Every target does its own set-up; a second run installs nothing.
VENV := .venv
# Each process has servers of its own; a file's tests stay together. One waits while two work.
PYTEST = $(VENV)/bin/python -m pytest --numprocesses 3 --dist loadfile
STAMP := $(VENV)/installed
# Evaluated where it is used: the first python3.11 or newer that is on the path.
PYTHON = $(shell for p in python3.13 python3.12 python3.11 python3.14 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# Migrations that came after the last release, by its tag; none before the first one.
LATER_MIGRATIONS = $(shell release=$$(git describe --tags --abbrev=0 2>/dev/null) && \
  git diff --name-only --no-renames --diff-filter=A $$release -- supabase/migrations)

.PHONY: demo test test-long bench bench-large eval docs faiss lint clean

demo: $(STAMP)
	@$(VENV)/bin/two-tower demo

# Ends with ratios of a short bench, to compare with those of an earlier log: nothing judges them.
test: lint
	@$(PYTEST)
	@$(VENV)/bin/two-tower bench inserts --quick --users 2000 --posts 2000

# Also thousands of examples of each fuzzed call, and 1,000 kills: hours.
test-long: lint
	@$(PYTEST) -m "long or not long"

eval: $(STAMP)
	@mkdir -p .two-tower
	@$(VENV)/bin/two-tower evaluate --plot .two-tower/evaluation.png
	@$(VENV)/bin/two-tower evaluate --feed

bench: $(STAMP) faiss
	@$(VENV)/bin/two-tower bench inserts
	@$(VENV)/bin/two-tower bench cpu
	@$(VENV)/bin/two-tower bench serving
	@$(VENV)/bin/two-tower bench sources
	@$(VENV)/bin/two-tower bench operations
	@$(VENV)/bin/two-tower bench study
	@$(VENV)/bin/two-tower bench upkeep
	@$(VENV)/bin/two-tower bench alternatives

bench-large: $(STAMP) faiss
	@$(VENV)/bin/two-tower bench growth
	@$(VENV)/bin/two-tower bench upkeep --posts 1000000
	@$(VENV)/bin/two-tower bench serving --posts 1000000

docs: $(STAMP)
	@$(VENV)/bin/python -m docs.generator

faiss: $(STAMP)
	@$(VENV)/bin/python -c 'import faiss' 2>/dev/null || $(VENV)/bin/python -m pip install --quiet \
	  --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'

lint: $(STAMP)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-logo --no-cache
	@$(VENV)/bin/sqlfluff lint --processes 2 --disable-progress-bar supabase/migrations
	@$(VENV)/bin/deno fmt --quiet --check --config supabase/functions/deno.json supabase/functions
	@$(VENV)/bin/deno lint --quiet --config supabase/functions/deno.json supabase/functions
	@$(if $(LATER_MIGRATIONS),$(VENV)/bin/squawk $(LATER_MIGRATIONS))

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is missing: install it, or put it on the PATH."; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Python's venv module is missing: install it (Debian: apt install python3-venv)."; exit 1; }
	@echo "Installing into $(VENV) (once, a few minutes)"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[local,dev]'
	@touch $@

clean:
	@rm -rf $(VENV)
