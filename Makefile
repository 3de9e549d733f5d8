VENV ?= .venv
# a busy index is asked again
export PIP_RETRIES ?= 10
export PIP_DEFAULT_TIMEOUT ?= 60
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo test check bench proof report format lock install browser clean

demo: install ## one whole round on this machine: synthetic patients, no server, no GPU
	$(BIN)/python -m jobs.run_round demo $(ARGS)

test: install browser ## every test; says what it skipped and why
	$(BIN)/python -m pytest $(ARGS)

check: install ## what CI checks besides the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install ## ratios against named peers, measured here, into docs/benchmarks.md
	$(BIN)/python benchmarks/run.py $(ARGS)

report: install ## known weaknesses of the dependencies, and the list of them (CycloneDX), into build/report; never fails
	@PYTHON=$(BIN)/python .ci/report

proof: install ## the paper's tables and figures from a campaign of our own, into docs/proof.md
	$(BIN)/python benchmarks/proof.py $(ARGS)

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt tests/requirements-nodeps.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "atlas_ray needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement tests/requirements-nodeps.txt
	touch $@

browser: ## the browser tests need Chromium; without it they are skipped and say so
	@command -v chromium chromium-browser google-chrome >/dev/null \
	  || (command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core) \
	  || echo "no Chromium here and no right to install it: browser tests will be skipped"

lock: install ## pin what is installed now
	(sed -n '/^#/p' constraints.txt; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu//') > constraints.new && mv constraints.new constraints.txt

clean:
	rm -rf workspaces .pytest_cache .mypy_cache .ruff_cache
