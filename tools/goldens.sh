#!/usr/bin/env bash
# Makes every file of tests/goldens anew (`make goldens`). Needs tools/goldens-requirements.txt and the models that
# `make models` pulls.
#
#   PYTHON     the interpreter with these packages
#   NFCORPUS   BEIR's nfcorpus.zip; without it, nfcorpus.json stays as it is
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
CACHE=${ADVENTURES_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/adventures}

# Goldens are of models that the catalogue knows by their sha256: nothing here may fetch another.
export HF_HUB_OFFLINE=1

"$PYTHON" tools/goldens_embedder.py "$CACHE/models/all-minilm-l6-v2" ${NFCORPUS:+"$NFCORPUS"}
"$PYTHON" tools/goldens_e5.py "$CACHE/tests/multilingual-e5-small-q4"
"$PYTHON" tools/goldens_colbert.py
"$PYTHON" tools/goldens_decoder.py
"$PYTHON" tools/goldens_llm2vec.py
"$PYTHON" tools/goldens_llama.py --cache "$CACHE"
"$PYTHON" tools/goldens_quant.py
"$PYTHON" tools/goldens_perplexity.py --cache "$CACHE"
"$PYTHON" tools/goldens_tokenizer.py "$CACHE/models"
git status --short tests/goldens
