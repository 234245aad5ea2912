#!/usr/bin/env bash
# The models on a card, in one call: the parity tests that CI runs on candle's CPU device, then the speed table.
#
#     tools/gpu.sh [DIRECTORY]
#
# DIRECTORY holds the tests as `make cuda-tests` built them; without one they are built here. Writes one object of JSON: the
# card, whether the tests passed, and a row for each measurement. It needs the driver and, for the built tests, CUDA's libraries
# of the same version, which are looked for among Python's packages.
set -euo pipefail
cd "$(dirname "$0")/.."
export ADVENTURES_TEST_DEVICE=${ADVENTURES_TEST_DEVICE:-cuda}
# Where the tests find the goldens, wherever they were built.
export CARGO_MANIFEST_DIR=$PWD/adventures

directory=${1:-}
if [[ -z $directory ]]; then
    make --silent cuda-tests >&2
    directory=dist/cuda-tests
fi
libraries=$(python3 -c 'import glob, sys; print(":".join(glob.glob(sys.prefix + "/lib/python3*/site-packages/nvidia/cu13/lib")))')
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

card=$(nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader 2>/dev/null || echo none)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=true
for name in device device_encoder; do
    "$directory/$name" --nocapture >&2 || passed=false
done
"$directory/device_speed" --ignored --nocapture --test-threads 1 | tee "$log" >&2 || passed=false
CARD=$card PASSED=$passed python3 - "$log" <<'PYTHON'
import json
import os
import sys

rows = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8") if line.startswith("{")]
print(json.dumps({"card": os.environ["CARD"], "passed": os.environ["PASSED"] == "true", "speed": rows}, indent=1))
PYTHON
[[ $passed == true ]]
