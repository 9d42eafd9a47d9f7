#!/usr/bin/env bash
# Sample Wan2.1. Without arguments: the embedded text-to-video model on its prompts, uncached, TaylorSeer and FORA side by side.
# With arguments they go to TaylorSeer-Wan2.1/generate.py, e.g. --model wan-t2v-1.3B --width 832 --height 480 --prompt "two cats boxing"
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
[ $# -gt 0 ] || set -- --compare
export TAYLORSEER_SCRIPT=scripts/run_wan.sh
exec python TaylorSeer-Wan2.1/generate.py "$@"
