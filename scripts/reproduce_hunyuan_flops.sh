#!/usr/bin/env bash
# The FLOPs column of the paper's HunyuanVideo table (480x640, 65 frames, 50 steps, bf16): published row, our count, and the
# difference; and what the engines keep there and at 720x1280, 129 frames. Counts on the meta device, so it needs no weights
# and no GPU; a few minutes. Writes results/hunyuan/flops.json and flops-720p.json.
# Usage: bash scripts/reproduce_hunyuan_flops.sh [FOLDER]   (default: results)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
results="${1:-results}"
mkdir -p "$results/hunyuan"
rm -f "$results"/hunyuan/flops*.json
count() { # RECORD FLAGS...
  python eval/flops.py --model hunyuan-video --precision bf16 --out "$results/hunyuan/$1.json" "${@:2}" >/dev/null
}
count flops --method uncached
count flops --method taylorseer --interval 3
count flops --method taylorseer --interval 5 --kept-goal-gib 1.9
count flops --method taylorseer --interval 6
count flops --method fora --interval 5
count flops-720p --height 720 --width 1280 --frames 129 --method taylorseer --interval 5 --kept-goal-gib 11
python eval/tables.py --results "$results" --print hunyuan-flops
