# One command each, on a fresh machine: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0

.PHONY: demo test lint wheel-check conformance golden clean

demo: $(VENV)/.demo
	$(BIN)/tec-zarr demo --out demo-out

test: $(VENV)/.test lint
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .

# The built wheel, installed alone in an environment of its own, runs the demo.
wheel-check: $(VENV)/.test
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install --quiet $(TORCH)
	build/wheel/venv/bin/pip install --quiet build/wheel/*.whl
	cd build/wheel && venv/bin/tec-zarr demo

# Our modules against the public reference implementation; makes an environment for it.
conformance: $(VENV)/.test
	PATH="$(abspath $(BIN)):$$PATH" tests/conformance/run.sh

# Golden streams of the newest weights; run once at each release of weights or of the format.
golden: $(VENV)/.test
	$(BIN)/python tests/make_golden.py

# torch comes first and alone: pip then takes a CPU build that is at hand (--find-links, or
# https://download.pytorch.org/whl/cpu) and the package's own torch>=2.4 is already satisfied.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --editable '.[plots]'
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist demo-out
