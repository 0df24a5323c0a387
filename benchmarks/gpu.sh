#!/usr/bin/env bash
# On a bare machine with an NVIDIA GPU, nvcc, and a Python that has torch, Triton and what the tests need; no network.
# Builds in place, runs the kernels' tests and the engine's on the device, then a part of them under compute-sanitizer.
#   benchmarks/gpu.sh [RESULTS]     what each part says goes to files in RESULTS, benchmarks/results/gpu by default
set -euo pipefail
cd "$(dirname "$0")/.."
results=${1:-benchmarks/results/gpu}
mkdir -p "$results"

{
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
  nvcc --version | tail -n 2
  python -c "import torch, triton; print('torch', torch.__version__, 'triton', triton.__version__)"
  git describe --always --dirty --abbrev=12 || true
} | tee "$results/machine.txt"

python setup.py build_ext --inplace > "$results/build.txt" 2>&1 || { tail -n 40 "$results/build.txt"; exit 1; }
python -c "
import torch, tts_kernels
assert torch.cuda.is_available(), 'torch sees no GPU'
for row in tts_kernels.backends('cuda', torch.bfloat16):
    print(row['op'], row['backend'], row['state'])
" | tee "$results/backends.txt"

# All that runs on the device: conformance of every backend there, what only these kernels promise, a search.
python -m pytest tests/kernels/test_conformance.py tests/kernels/test_triton.py tests/engine/test_gpu.py \
  -k "cuda or triton or gpu" --durations=20 2>&1 | tee "$results/tests.txt"

# The cases without half types and layouts: a kernel under the sanitizer takes a hundred times as long.
PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 9 --target-processes all \
  python -m pytest tests/kernels/test_conformance.py -k "cuda and float32 and dense and not reference" 2>&1 | tee "$results/sanitizer.txt"
