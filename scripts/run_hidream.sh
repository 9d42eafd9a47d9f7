#!/usr/bin/env bash
# Sample HiDream. Without arguments: the embedded text-to-image model on its prompts, uncached, TaylorSeer and FORA side by side.
# With arguments they go to TaylorSeer-HiDream/sampling.py, e.g. --model hidream-full --prompt "a photo of a fox in the snow"
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
[ $# -gt 0 ] || set -- --compare
export TAYLORSEER_SCRIPT=scripts/run_hidream.sh
exec python TaylorSeer-HiDream/sampling.py "$@"
