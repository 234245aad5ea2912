# make demo    sets everything up and streams cited answers from a Delta table
# make test    sets everything up, then lints and runs all tests: what CI runs
# make lint | rust-test | python-test | format | mutants | perplexity | goldens | bench-generate | bench-engine | bench-embed | wheel | clean

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/adventures

# Build output lives outside the clone, so a second clone builds in seconds.
export CARGO_TARGET_DIR ?= $(CACHE)/target
# What maturin sets: with it, cargo and maturin share one build of pyo3.
export PYO3_PYTHON := $(BIN)/python
export PYO3_BUILD_EXTENSION_MODULE := 1
export VIRTUAL_ENV := $(VENV)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

RUST := $(shell find adventures adventures-py -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock
# The embedded default pair, and what the tests read besides.
DEMO_MODELS := all-minilm-l6-v2 smollm2-135m-instruct
TEST_MODELS := $(DEMO_MODELS) gemma-3-270m

.PHONY: demo test lint rust-test python-test models format mutants perplexity goldens bench-generate bench-engine bench-embed wheel clean
demo: $(VENV)/installed
	$(BIN)/adventures models pull $(DEMO_MODELS)
	$(BIN)/adventures demo

test: lint models rust-test python-test

lint: $(VENV)/installed-dev
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets --locked --quiet -- -D warnings
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest adventures._adventures

models: $(VENV)/installed-dev
	$(BIN)/adventures models pull $(TEST_MODELS)

rust-test: models
	cargo test --release --workspace --locked

python-test: models
	$(BIN)/python -m pytest

format: $(VENV)/installed-dev
	cargo fmt --all
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# What the tests expect, made anew by the reference implementations: torch, transformers, llama.cpp (4 GB of packages).
goldens: models
	$(PYTHON) -m venv $(CACHE)/goldens
	$(CACHE)/goldens/bin/pip install --quiet --requirement tools/goldens-requirements.txt
	PYTHON=$(CACHE)/goldens/bin/python tools/goldens.sh

# 12,000 broken model files: each gives a text or a clear error within a second. The tests run some hundreds.
mutants: $(VENV)/installed
	$(BIN)/python tools/mutants.py

# How well 20,000 tokens are predicted, against llama.cpp. The tests compare a thousand.
perplexity: models
	$(PYTHON) -m venv $(CACHE)/llama.cpp
	$(CACHE)/llama.cpp/bin/pip install --quiet llama-cpp-python==0.3.36
	$(CACHE)/llama.cpp/bin/python tools/goldens_perplexity.py --tokens 20000 --out $(CACHE)/perplexity
	PERPLEXITY=$(CACHE)/perplexity cargo test --release --locked -p adventures --test perplexity -- --ignored --nocapture

# Speed against llama.cpp, built here for this machine.
bench-generate: models
	$(PYTHON) -m venv $(CACHE)/llama.cpp
	$(CACHE)/llama.cpp/bin/pip install --quiet llama-cpp-python==0.3.36
	$(BIN)/python tools/bench_generate.py --theirs $(CACHE)/llama.cpp/bin/python

# What answers side by side, quotes and prompts that begin alike save.
bench-engine: models
	$(BIN)/python tools/bench_engine.py

# Speed of embedding against ONNX Runtime.
bench-embed: models
	$(PYTHON) -m venv $(CACHE)/onnxruntime
	$(CACHE)/onnxruntime/bin/pip install --quiet onnxruntime==1.22.0 'onnx<2' numpy sympy tokenizers
	$(BIN)/python tools/bench_embed.py --theirs $(CACHE)/onnxruntime/bin/python $(BENCH)

wheel: $(VENV)/installed
	$(BIN)/maturin build --profile dist --out dist

clean:
	rm -rf $(VENV) dist data

$(BIN)/maturin:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "adventures needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet 'maturin>=1.9,<2'

# The extension is built here and the Python files are used where they lie.
$(VENV)/installed: $(BIN)/maturin $(RUST) pyproject.toml
	$(BIN)/maturin develop --release --locked --quiet
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/maturin develop --release --locked --quiet --extras dev
	touch $@
