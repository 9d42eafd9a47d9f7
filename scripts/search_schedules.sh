#!/usr/bin/env bash
# Search the schedules that are shipped beside the embedded models: 7, 8, 10, 14 and 18 full steps of 50, for each model's
# published method and order. Minutes a schedule on two cores; those that are there are kept, a killed run goes on where it was.
# Usage: bash scripts/search_schedules.sh [MODEL...]   (default: all five)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
declare -A folders=(
  [fashion-mnist]=TaylorSeer-DiT [flux-tiny]=TaylorSeer-FLUX [hidream-tiny]=TaylorSeer-HiDream
  [hunyuan-tiny]=TaylorSeer-HunyuanVideo [wan-tiny]=TaylorSeer-Wan2.1
)
[ $# -gt 0 ] || set -- fashion-mnist flux-tiny hidream-tiny hunyuan-tiny wan-tiny
for model in "$@"; do
  for count in 7 8 10 14 18; do
    case $count in
      10) lists=40 ;; # what most comparisons are made at
      18) lists=15 ;;
      *) lists=25 ;;
    esac
    python eval/search_schedule.py --model "$model" --full-steps "$count" --lists "$lists" --resume \
      --out "${folders[$model]:?"$model is none of the embedded models"}/schedules/$model-$count-of-50.json"
  done
done
