#!/usr/bin/env bash
# On a bare machine with an NVIDIA GPU, nvcc, and a Python that has torch, Triton, transformers and what the tests need; no
# network. Builds in place, runs the kernels' tests and the engine's on the device, a part of them under compute-sanitizer, measures
# the kernels beside their peers and whole searches beside transformers.
#   benchmarks/gpu.sh [PART...]     all parts by default, under 13 minutes; or in two calls, under 6 and under 9 minutes:
#     benchmarks/gpu.sh machine build backends tests sanitizer racecheck
#     benchmarks/gpu.sh build kernels search-llama-3.2-1b search-llama-3.1-8b
# RESULTS is the folder for the files, benchmarks/results/gpu by default; all.tar.gz there holds all others, renewed after each part.
# PYTHON is the interpreter, python3 by default. TTS_COMMIT is the commit that rows name where there is no git.
# A part that fails or runs out of its time does not stop the others; the last lines have one for each, and the exit code is 1 if
# any failed. Rows that a part has written before it is stopped stay.
set -uo pipefail
cd "$(dirname "$0")/.."
all="machine build backends tests sanitizer racecheck kernels search-llama-3.2-1b search-llama-3.1-8b"
wanted=" ${*:-$all} "
for name in $wanted; do
  [[ " $all " == *" $name "* ]] || { echo "no part $name; there are $all"; exit 2; }
done
export PYTHON=${PYTHON:-python3} PYTHONUNBUFFERED=1
results=${RESULTS:-benchmarks/results/gpu}
mkdir -p "$results"
models=$(mktemp -d)
trap 'rm -rf "$models"' EXIT
summary=()
has_failed=0

# part NAME SECONDS COMMAND...: if it is wanted; what it says goes to NAME.txt. A part out of time is interrupted, so that it can
# still say what it has found.
part() {
  local name=$1 limit=$2 begin=$SECONDS code=0
  shift 2
  [[ $wanted == *" $name "* ]] || return 0
  timeout --signal=INT --kill-after=10 "$limit" "$@" > "$results/$name.txt" 2>&1 || code=$?
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
  (shopt -s nullglob && cd "$results" && tar -czf all.tar.gz -- *.txt *.jsonl *.png)
}

describe() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
  nvcc --version | tail -n 2
  "$PYTHON" -c "import torch, triton; print('torch', torch.__version__, 'triton', triton.__version__)"
  git describe --always --dirty --abbrev=12 || echo "commit ${TTS_COMMIT:-unknown}"
}

list_backends() {
  "$PYTHON" -c "
import torch, tts_kernels
assert torch.cuda.is_available(), 'torch sees no GPU'
for row in tts_kernels.backends('cuda', torch.bfloat16):
    print(row['op'], row['backend'], row['state'])
"
}
export -f describe list_backends

part machine 15 bash -c describe
part build 90 "$PYTHON" setup.py build_ext --inplace
part backends 15 bash -c list_backends

# All that runs on the device: a search, what only these kernels promise, the clock, conformance of every backend there.
part tests 120 "$PYTHON" -m pytest tests/engine/test_gpu.py tests/kernels/test_triton.py tests/test_kernel_benchmarks.py \
  tests/kernels/test_conformance.py -k "cuda or triton or gpu" -n 12 -ra --tb=short

# The cases without half types and layouts: a kernel under the sanitizer takes a hundred times as long.
sanitize=(compute-sanitizer --report-api-errors no --error-exitcode 9 --target-processes all)
conformance=("$PYTHON" -m pytest tests/kernels/test_conformance.py --tb=short)
PYTORCH_NO_CUDA_MEMORY_CACHING=1 part sanitizer 60 "${sanitize[@]}" \
  "${conformance[@]}" -k "cuda and float32 and dense and not reference"
part racecheck 40 "${sanitize[@]}" --tool racecheck \
  "${conformance[@]}" -k "cuda and (prune or sample or score) and float32 and dense"

# The families whose cases are the quickest to prepare come first.
part kernels 100 "$PYTHON" -m benchmarks kernels --device cuda --quick --families append,copy_tails,fork,prune,sample,score,attend \
  --out "$results/kernels.jsonl" --plot "$results/kernels.png"

# Random weights are made on the device, so no checkpoint is written. One repeat each: the table says so.
for model in llama-3.2-1b llama-3.1-8b; do
  part "search-$model" 150 "$PYTHON" -m benchmarks search --device cuda --model "$model" --trace beam,beam+prm \
    --peers transformers --repeats 1 --timeout 60 --work "$models" --out "$results/search.jsonl"
done

echo
printf '%s\n' "${summary[@]}"
exit "$has_failed"
