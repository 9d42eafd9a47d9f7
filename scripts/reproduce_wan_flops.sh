#!/usr/bin/env bash
# Operations of Wan2.1 (50 steps, guidance, 81 frames, bf16), with and without attention's products, beside the published count
# of the 1.3B model at 832x480, and of the 14B model at 1280x720; and what the engines keep. Counts on the meta device, so it
# needs no weights and no GPU; a few minutes. Writes results/wan/flops.json and flops-14b-720p.json.
# Usage: bash scripts/reproduce_wan_flops.sh [FOLDER]   (default: results)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/count_flops.sh wan "$@"
small() { count flops --precision bf16 --num-frames 81 --model wan-t2v-1.3B --width 832 --height 480 "$@"; }
large() { count flops-14b-720p --precision bf16 --num-frames 81 --model wan-t2v-14B --width 1280 --height 720 "$@"; }
small --method uncached
small --method taylorseer --interval 2
small --method taylorseer --interval 3
small --method taylorseer --interval 5 --kept-goal-gib 2.5
small --method fora --interval 5
large --method uncached
large --method taylorseer --interval 4
large --method taylorseer --interval 5 --kept-goal-gib 24
large --method taylorseer --interval 6
finish
