# One command each, on a fresh machine: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0

.PHONY: bench demo docs fuzz fuzz-core test test-matrix test-quick lint wheel-check wheels readers
.PHONY: readers-test notebooks
.PHONY: readers-test-js
.PHONY: readers-test-gdal conformance-kit conformance golden clean

demo: $(VENV)/.demo
	$(BIN)/tec-zarr demo --out demo-out

# JOBS: processes that share the tests; 0 for one, which pytest --pdb needs.
JOBS ?= 2
test: $(VENV)/.test lint
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# A table of Python x Zarr x codec pipeline in docs/robustness.md; hours on 2 cores. ONLY=3.13: the
# rows whose name begins so. test-quick: some of the tests with one more Python, as in CI.
test-matrix: $(VENV)/.test
	$(BIN)/python benchmarks/matrix.py $(if $(ONLY),--only "$(ONLY)")

QUICK_PYTHON ?= 3.13
test-quick: $(VENV)/.test
	$(BIN)/python benchmarks/matrix.py --quick $(QUICK_PYTHON)

# The documentation site, into build/site; a warning or a link that leads nowhere fails. No torch.
# To look at it: python -m http.server --directory build/site
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --config-file docs/site/mkdocs.yml

# Run the notebooks of examples/ and keep what they print and draw: at each release of weights.
notebooks: $(VENV)/.test
	$(BIN)/python docs/site/notebooks.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy

# The built wheel, installed alone in an environment of its own, runs the demo.
wheel-check: $(VENV)/.test
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install --quiet build/wheel/*.whl
	cd build/wheel && venv/bin/tec-zarr demo

# Wheels of all platforms and the sdist, into dist/. Zig compiles the core for each of them. The
# tests look into every file, and run what can be run here (apt-get install qemu-user
# libc6-arm64-cross musl wine wine64). A fresh environment downloads what the package depends on.
wheels: readers
	$(BIN)/pip install --quiet hatchling ziglang twine
	$(BIN)/python .ci/wheels.py
	$(BIN)/python -m pytest tests/test_wheels.py -rs

# The decoder in WebAssembly, for readers/js, and the page of `tec-zarr view`. Needs Node.js and npm.
readers: $(VENV)/.test
	cd readers/js && npm ci --no-audit --no-fund
	$(BIN)/pip install --quiet hatchling ziglang
	$(BIN)/python readers/js/build.py

# Readers in other languages, against golden streams and stores.
readers-test: readers-test-js readers-test-gdal

# Needs Node.js, npm and chromium.
readers-test-js: readers
	$(BIN)/python -m pytest tests/test_readers_js.py tests/test_view.py -rs

# Needs gdal-bin and libgdal-dev, for R r-cran-terra.
readers-test-gdal: $(VENV)/.test
	$(BIN)/python -m pytest tests/test_gdal.py -rs

# For those who write a reader: dist/tec-conformance, a folder to copy.
conformance-kit: $(VENV)/.test
	$(BIN)/python readers/kit/make.py dist/tec-conformance

# Coverage-guided fuzzing of the parser; adds up over calls. RUNS=100000 TARGET=chunk for others.
TARGET ?= stream
RUNS ?= 10000000
fuzz: $(VENV)/.test
	$(BIN)/pip install --quiet atheris
	$(BIN)/python tests/fuzz/run.py $(TARGET) --runs $(RUNS) --corpus build/fuzz/$(TARGET) \
		--out benchmarks/results/fuzz.json
	$(BIN)/python benchmarks/robustness.py --page

# The same of the compiled core, with libFuzzer under sanitizers; SECONDS for each target. Needs clang.
SECONDS ?= 60
fuzz-core: $(VENV)/.test
	$(BIN)/python tests/fuzz/core.py --seconds $(SECONDS) --out benchmarks/results/fuzz_core.json
	$(BIN)/python benchmarks/robustness.py --page

types: $(VENV)/.test
	$(BIN)/mypy

# The lowest versions of what we depend on.
min-versions: $(VENV)/.test
	$(PYTHON) -m venv build/min
	build/min/bin/pip install --quiet -r tests/minimum-versions.txt pytest hypothesis
	build/min/bin/pip install --quiet --no-deps --editable .
	build/min/bin/python -m pytest tests/test_stream.py tests/test_mask.py tests/test_chunk.py \
		tests/test_bound.py tests/test_zarr.py tests/test_store.py tests/test_robustness.py

# Zarr format 2 in zarr 2.18, which cannot live in one environment with zarr 3.
zarr2:
	$(PYTHON) -m venv build/zarr2
	build/zarr2/bin/pip install --quiet 'zarr<3' 'numcodecs<0.16' tqdm
	build/zarr2/bin/python tests/zarr2_check.py

# Our modules against the public reference implementation; makes an environment for it.
conformance: $(VENV)/.test
	PATH="$(abspath $(BIN)):$$PATH" tests/conformance/run.sh

# Golden streams of the newest weights; run once at each release of weights or of the format.
golden: $(VENV)/.test
	$(BIN)/python tests/make_golden.py
	$(BIN)/python docs/zarr-extension/make_sample.py

# Everything that docs/benchmarks.md says, measured again (most of an hour on 2 idle cores), and the
# pages made of it. QUICK=1: corners and few levels, in minutes, into build/bench; no page changes.
# DATA: the folder that holds eval/ and train/; REFERENCE_PYTHON: python of the reference
# implementation's environment, without which its speed is not measured; ONLY: some steps.
DATA ?= $(abspath ../shared/data)
bench: $(VENV)/.bench
	TEC_ZARR_BENCH_DATA=$(DATA) $(BIN)/python benchmarks/run.py $(if $(QUICK),--quick) \
	  $(if $(REFERENCE_PYTHON),--reference-python $(REFERENCE_PYTHON)) $(if $(ONLY),--only $(ONLY))

# torch comes first and alone: pip then takes a CPU build that is at hand (--find-links, or
# https://download.pytorch.org/whl/cpu) and the package's own torch>=2.4 is already satisfied.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	touch $@

$(VENV)/.demo: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[plots]'
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.docs: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

$(VENV)/.bench: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --editable '.[benchmarks]'
	touch $@

clean:
	rm -rf $(VENV) build dist demo-out
