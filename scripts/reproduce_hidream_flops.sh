#!/usr/bin/env bash
# Operations of HiDream-I1 (1024x1024, bf16): Full in 50 steps with guidance, Dev in 28 and Fast in 16 without; and what the
# engines keep. No figures are published to compare with. Counts on the meta device, so it needs no weights and no GPU;
# about a minute. Writes results/hidream/flops.json.
# Usage: bash scripts/reproduce_hidream_flops.sh [FOLDER]   (default: results)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/count_flops.sh hidream "$@"
of() { count flops --model "hidream-$1" --precision bf16 "${@:2}"; } # MODEL FLAGS...
of full --method uncached
for interval in 3 4 5 6; do
  of full --method taylorseer --interval "$interval" --max-order 2
done
of full --method taylorseer --interval 4 --max-order 1 # as the reference's document has it
of full --method fora --interval 4
for model in dev fast; do
  of "$model" --method uncached
  of "$model" --method taylorseer --interval 4
done
finish
