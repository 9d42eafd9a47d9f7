#!/usr/bin/env bash
# Operations of HiDream-I1 (1024x1024, bf16): Full in 50 steps with guidance, Dev in 28 and Fast in 16 without; and what the
# engines keep. No figures are published to compare with. Counts on the meta device, so it needs no weights and no GPU;
# about a minute. Writes results/hidream/flops.json.
# Usage: bash scripts/reproduce_hidream_flops.sh [FOLDER]   (default: results)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
results="${1:-results}"
mkdir -p "$results/hidream"
rm -f "$results/hidream/flops.json"
count() { # MODEL FLAGS...
  python eval/flops.py --model "hidream-$1" --precision bf16 --out "$results/hidream/flops.json" "${@:2}" >/dev/null
}
count full --method uncached
for interval in 3 4 5 6; do
  count full --method taylorseer --interval "$interval" --max-order 2
done
count full --method taylorseer --interval 4 --max-order 1 # as the reference's document has it
count full --method fora --interval 4
for model in dev fast; do
  count "$model" --method uncached
  count "$model" --method taylorseer --interval 4
done
python eval/tables.py --results "$results" --print hidream-flops
