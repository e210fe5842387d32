# Every target sets itself up: the first run makes .venv, later ones are quick.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check docs screenshots bench bench-detection bench-cures bench-tab
.DELETE_ON_ERROR:

demo: .venv/installed  ## four networks on real data, one healthy, three sick; leaves runs/ for TensorBoard
	$(BIN)/gradwatch demo

test: .venv/installed  ## all tests (those of the tab need node and chromium)
	node --test tests/js/*.test.mjs
	$(BIN)/python -m pytest --cov --cov-report=term

check: .venv/installed  ## formatter, linter, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The variable silences a notice that mkdocs-material is kept until May 2027: time to move to its successor, Zensical.
docs: .venv/docs  ## the site, in site/; fails where a link or an anchor leads nowhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

screenshots: .venv/bench  ## the pictures of README and docs, from a fresh demonstration (needs chromium)
	$(BIN)/gradwatch demo
	$(BIN)/python docs/screenshots.py
	$(BIN)/python docs/pictures.py
	$(BIN)/python docs/report_pictures.py
	$(BIN)/python examples/remedies
	$(BIN)/python docs/remedy_pictures.py

bench: .venv/bench  ## what watching costs, beside clipping and other tools; writes the tables of docs/performance.md (half an hour)
	$(BIN)/python -m benchmarks.overhead --write

bench-detection: .venv/bench  ## every program under every tool; writes the tables of docs/detection.md (half an hour)
	$(BIN)/python -m benchmarks.detection.prove
	$(BIN)/python -m benchmarks.detection.run --half all --write

bench-cures: .venv/bench  ## whether prescribe finds the cures that there are; writes the tables of docs/prescribe.md (hours; goes on where it was)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.cures search --half all
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.cures measure --half all
	$(BIN)/python -m benchmarks.cures table

bench-tab: .venv/installed  ## how fast the tab opens and zooms (needs chromium; ten minutes)
	$(BIN)/python -m benchmarks.tab

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/bench: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,bench]'
	touch $@

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	touch $@
