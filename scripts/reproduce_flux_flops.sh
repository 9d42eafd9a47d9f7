#!/usr/bin/env bash
# The FLOPs column of the paper's FLUX.1-dev table (1024x1024, 50 steps, bf16): published row, our count, and the difference.
# Counts on the meta device, so it needs no weights and no GPU; a few minutes. Writes results/flux/flops.json.
# Usage: bash scripts/reproduce_flux_flops.sh [FOLDER]   (default: results)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/count_flops.sh flux "$@"
dev() { count flops --model flux-dev --precision bf16 --warmup-steps 3 "$@"; }
dev --method uncached
for interval in 3 4 5 6 7; do # --max-order is left to the paper's choice, 2
  dev --method taylorseer --interval "$interval"
done
dev --method taylorseer --interval 6 --max-order 1 # as the released script
for interval in 3 4 5 6; do
  dev --method fora --interval "$interval"
done
part() { count flops --model flux-dev --precision bf16 "$@"; } # methods that compute part of a step
for interval in 4 5 6; do
  part --method toca --interval "$interval"
done
for interval in 5 7 9 10; do
  part --method duca --interval "$interval"
done
for interval in 2 3; do
  part --method delta_dit --interval "$interval"
done
finish
