#!/usr/bin/env bash
# Sample DiT. Without arguments: the embedded model, uncached, TaylorSeer and FORA side by side.
# With arguments they go to TaylorSeer-DiT/sample.py, e.g. --model DiT-XL/2 --image-size 256 --compare
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
[ $# -gt 0 ] || set -- --compare
export TAYLORSEER_SCRIPT=scripts/run_dit.sh
exec python TaylorSeer-DiT/sample.py "$@"
