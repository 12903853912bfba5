# Every target sets up .venv itself when it is missing or stale.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.stamp
PROOFS := $(wildcard scripts/proofs/[a-z]* scripts/benchmarks/[a-z]*)

.PHONY: setup demo test lint docs proof clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "reflect needs Python 3.11 or newer: make setup PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Setting up .venv; the first time takes minutes, most of them for torch." >&2
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/reflect demo

# Two workers with one thread each: as fast as two cores go, and figures that do not depend on the number of cores. The
# files run in the order of their names, the long ones of e2e/ first, so that neither worker ends with a long file alone.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check reflect tasks tests examples
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation site in site/. Broken links and anchors are errors. Nothing is loaded from the network.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.venv/.docs: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

# Every figure that we claim. All the scripts run, then those whose line was not met are named. QUICK=1: shorter runs.
proof: $(STAMP)
	@failed=; for script in $(PROOFS); do \
		echo "== $$script" >&2; \
		PATH="$(CURDIR)/$(BIN):$$PATH" $$script $(if $(QUICK),--quick) || \
			{ [ $$? -eq 2 ] && echo "left out: $$script needs the extra [lab]" >&2 || failed="$$failed $$script"; }; \
	done; test -z "$$failed" || { echo "Not met:$$failed" >&2; exit 1; }

clean:
	rm -rf .venv site .pytest_cache .mypy_cache .ruff_cache
