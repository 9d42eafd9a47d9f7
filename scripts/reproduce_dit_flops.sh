#!/usr/bin/env bash
# The FLOPs column of the paper's DiT-XL/2 table (256x256, 50 steps, guidance): published row, our count, and the difference.
# Counts on the meta device, so it needs no weights and no GPU; about two minutes. Writes results/dit/flops.json.
# Usage: bash scripts/reproduce_dit_flops.sh [FOLDER]   (default: results)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/count_flops.sh dit "$@"
for interval in 3 4 5; do # --max-order is left to the paper's choice for the interval
  count flops --model DiT-XL/2 --method taylorseer --interval "$interval" --warmup-steps 2
done
for interval in 3 4 5; do
  count flops --model DiT-XL/2 --method fora --interval "$interval" --warmup-steps 2
done
count flops --model DiT-XL/2 --method toca --interval 3
for interval in 3 5; do
  count flops --model DiT-XL/2 --method duca --interval "$interval"
done
finish
