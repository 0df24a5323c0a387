#!/usr/bin/env bash
# On a bare machine with an NVIDIA GPU, nvcc, and a Python that has torch, Triton, transformers and what the tests need; no
# network, under 9 minutes. Builds in place, runs the kernels' tests and the engine's on the device, a part of them under
# compute-sanitizer, measures the kernels beside their peers and whole searches beside transformers.
#   benchmarks/gpu.sh [RESULTS]     files go to RESULTS, benchmarks/results/gpu by default
# A part that fails or runs out of its time does not stop the others; the last lines have one for each, and the exit code is 1 if
# any failed. Rows that a part has written before it is stopped stay.
set -uo pipefail
cd "$(dirname "$0")/.."
results=${1:-benchmarks/results/gpu}
mkdir -p "$results"
summary=()
has_failed=0

# part NAME SECONDS COMMAND...: what it says goes to NAME.txt.
part() {
  local name=$1 limit=$2 begin=$SECONDS code=0
  shift 2
  timeout --kill-after=5 "$limit" "$@" > "$results/$name.txt" 2>&1 || code=$?
  if [ "$code" -ne 0 ]; then
    has_failed=1
    tail -n 15 "$results/$name.txt"
  fi
  case $code in
    0) summary+=("ok       $name, $((SECONDS - begin)) s") ;;
    124 | 137) summary+=("stopped  $name, after $limit s") ;;
    *) summary+=("FAILED   $name, exit code $code: see $results/$name.txt") ;;
  esac
  echo "${summary[-1]}"
}

describe() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
  nvcc --version | tail -n 2
  python -c "import torch, triton; print('torch', torch.__version__, 'triton', triton.__version__)"
  git describe --always --dirty --abbrev=12 || true
}

list_backends() {
  python -c "
import torch, tts_kernels
assert torch.cuda.is_available(), 'torch sees no GPU'
for row in tts_kernels.backends('cuda', torch.bfloat16):
    print(row['op'], row['backend'], row['state'])
"
}
export -f describe list_backends

part machine 20 bash -c describe
part build 100 python setup.py build_ext --inplace
part backends 20 bash -c list_backends

# All that runs on the device: conformance of every backend there, what only these kernels promise, a search, the clock.
part tests 110 python -m pytest tests/kernels/test_conformance.py tests/kernels/test_triton.py tests/test_kernel_benchmarks.py \
  tests/engine/test_gpu.py -k "cuda or triton or gpu" --durations=20

# The cases without half types and layouts: a kernel under the sanitizer takes a hundred times as long.
PYTORCH_NO_CUDA_MEMORY_CACHING=1 part sanitizer 60 compute-sanitizer --error-exitcode 9 --target-processes all \
  python -m pytest tests/kernels/test_conformance.py -k "cuda and float32 and dense and not reference"

part kernels 110 python -m benchmarks kernels --device cuda --quick --out "$results/kernels.jsonl" --plot "$results/kernels.png"

# Random weights are made on the device, so no checkpoint is written. One repeat each: the table says so.
for model in llama-3.2-1b llama-3.1-8b; do
  part "search-$model" 55 python -m benchmarks search --device cuda --model "$model" --trace beam,beam+prm --peers transformers \
    --repeats 1 --timeout 25 --work "$results/models" --out "$results/search.jsonl"
done
rm -rf "$results/models"

echo
printf '%s\n' "${summary[@]}"
exit "$has_failed"
