#!/usr/bin/env bash
# The peers' environment: TRL 1.16 beside what this project runs on. Run it in a fresh virtual environment of Python 3.11 to 3.13:
#   python3.11 -m venv .venv-peers && . .venv-peers/bin/activate && bash benchmarks/peers/install.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
pip install -e . "torch==${TORCH:-2.13.0}" transformers==5.17.0 peft==0.21.2 accelerate==1.15.0 datasets==4.8.5 trl==1.16.0
pip check
