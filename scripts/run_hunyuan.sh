#!/usr/bin/env bash
# Sample HunyuanVideo. Without arguments: the embedded text-to-video model on its prompts, uncached, TaylorSeer and FORA side by side.
# With arguments they go to TaylorSeer-HunyuanVideo/sample_video.py, e.g. --model hunyuan-video --prompt "a cat walks on the grass"
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
[ $# -gt 0 ] || set -- --compare
export TAYLORSEER_SCRIPT=scripts/run_hunyuan.sh
exec python TaylorSeer-HunyuanVideo/sample_video.py "$@"
