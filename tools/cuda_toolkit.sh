#!/usr/bin/env bash
# Puts NVIDIA's compiler and libraries for CUDA 13.0, as PyPI has them, into DIRECTORY, laid out so that they can be linked
# with: 13.0 is what drivers from 580 on run.
#
#     tools/cuda_toolkit.sh DIRECTORY
set -euo pipefail
directory=$1
python=${PYTHON:-python3}

"$python" -m venv "$directory"
# cuRAND and cuBLAS count their own versions; these are of CUDA 13.0.
"$directory/bin/pip" install --quiet 'nvidia-cuda-nvcc==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-crt==13.0.*' \
    'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*' 'nvidia-cuda-nvrtc==13.0.*' \
    'nvidia-cublas>=13.0,<13.1' 'nvidia-curand>=10.4,<11'
home=$(echo "$directory"/lib/python3*/site-packages/nvidia/cu13)
ln -sfn "$home" "$directory/cuda"

# The packages have no names without a version, which the linker looks for.
for library in "$home"/lib/lib*.so.*; do
    ln -sf "$(basename "$library")" "${library%%.so.*}.so"
done
# The driver's library comes with a driver. What is linked here needs its names alone, and CUDA's header has those.
mkdir -p "$home/lib/stubs"
grep -oE '\bcu[A-Z][A-Za-z0-9_]*' "$home/include/cuda.h" | sort -u | sed 's/.*/void &(void) {}/' |
    cc -shared -w -Wl,-soname,libcuda.so.1 -x c - -o "$home/lib/stubs/libcuda.so"
