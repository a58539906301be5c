# `make run` and `make test` need Python 3.11 or newer, make and git; they set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run demo test test-all lint format docs linkcheck screenshots clean

run: $(READY)
	$(BIN)/python app.py

demo: $(READY)
	$(BIN)/python -m segskd demo

# The demo trains for two minutes with both cores; everything else runs two files at a time.
DEMO := tests/browser/test_two_minutes.py

test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --ignore $(DEMO) -m "not every_pair"
	$(BIN)/python -m pytest $(DEMO)

# All of `make test`, and every pair of teacher and student in docs/architectures.md.
test-all: test
	$(BIN)/python -m pytest -m every_pair

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages of docs/ as a site: docs/_build/html/index.html. A warning or a broken internal link is an error.
docs: $(READY)
	$(BIN)/sphinx-build -W -n --keep-going -q docs docs/_build/html

# Also asks for every address outside; it needs a network.
linkcheck: $(READY)
	$(BIN)/sphinx-build --keep-going -b linkcheck docs docs/_build/linkcheck

screenshots: $(READY)
	$(BIN)/python tests/browser/screenshots.py

$(READY): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $(READY)

clean:
	rm -rf $(VENV)
