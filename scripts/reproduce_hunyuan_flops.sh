#!/usr/bin/env bash
# The FLOPs column of the paper's HunyuanVideo table (480x640, 65 frames, 50 steps, bf16): published row, our count, and the
# difference; and what the engines keep there and at 720x1280, 129 frames. Counts on the meta device, so it needs no weights
# and no GPU; a few minutes. Writes results/hunyuan/flops.json and flops-720p.json.
# Usage: bash scripts/reproduce_hunyuan_flops.sh [FOLDER]   (default: results)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/count_flops.sh hunyuan "$@"
video() { count "$1" --model hunyuan-video --precision bf16 "${@:2}"; } # RECORD FLAGS...
video flops --method uncached
video flops --method taylorseer --interval 3
video flops --method taylorseer --interval 5 --kept-goal-gib 1.9
video flops --method taylorseer --interval 6
video flops --method fora --interval 5
video flops --method toca --interval 5
video flops --method duca --interval 5
video flops-720p --height 720 --width 1280 --num-frames 129 --method taylorseer --interval 5 --kept-goal-gib 11
finish
