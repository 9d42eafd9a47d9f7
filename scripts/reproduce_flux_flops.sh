#!/usr/bin/env bash
# The FLOPs column of the paper's FLUX.1-dev table (1024x1024, 50 steps, bf16): published row, our count, and the difference.
# Counts on the meta device, so it needs no weights and no GPU; about two minutes. Writes results/flux/flops.json.
# Usage: bash scripts/reproduce_flux_flops.sh [FOLDER]   (default: results)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
results="${1:-results}"
mkdir -p "$results/flux"
rm -f "$results/flux/flops.json"
count() {
  python eval/flops.py --model flux-dev --precision bf16 --warmup-steps 3 --out "$results/flux/flops.json" "$@" >/dev/null
}
count --method uncached
for interval in 3 4 5 6 7; do # --max-order is left to the paper's choice, 2
  count --method taylorseer --interval "$interval"
done
count --method taylorseer --interval 6 --max-order 1 # as the released script
for interval in 3 4 5 6; do
  count --method fora --interval "$interval"
done
python eval/tables.py --results "$results" --print flux-flops
