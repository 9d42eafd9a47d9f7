#!/usr/bin/env bash
# The FLOPs column of the paper's FLUX.1-dev table (1024x1024, 50 steps, bf16): published row, our count, and the difference.
# Counts on the meta device, so it needs no weights and no GPU; about two minutes. Writes results/flux/flops.json.
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
finish
