#!/usr/bin/env bash
# Makes the virtual environment in which llama.cpp runs as a peer: benchmarks/peers/llamacpp.sh FOLDER
# Then: python -m benchmarks search --peers llamacpp --llamacpp FOLDER/bin/python ...
#
# llama-cpp-python is compiled on this machine for its processor (GGML_NATIVE), as its README says; without the part that reads
# images. That takes a C++ compiler and ten minutes to an hour. CMAKE_BUILD_PARALLEL_LEVEL says how many files at a time.
set -euo pipefail

folder=${1:?usage: llamacpp.sh FOLDER}
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet numpy gguf==0.19.0
CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF" \
  "$folder/bin/pip" install --quiet --no-binary llama-cpp-python llama-cpp-python==0.3.36
"$folder/bin/python" -c 'import llama_cpp; print("llama-cpp-python", llama_cpp.__version__)'
