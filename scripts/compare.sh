#!/usr/bin/env bash
# Compare every caching method on the five embedded models: records and plots into results/, tables into the documents.
# Options go to eval/compare.py for each model, e.g. --methods forms --num-samples 4. Killed, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
code=0
for model in fashion-mnist flux-tiny hidream-tiny hunyuan-tiny wan-tiny; do
  echo "== $model" >&2
  # A method that fails is a row of its table: the other models are compared, and the exit code tells.
  python eval/compare.py --model "$model" --results results "$@" || code=$?
  [[ $code == 0 || $code == 2 ]] || exit "$code"
done
case " $* " in *" --help "* | *" -h "* | *" --dry-run "*) exit "$code" ;; esac
python eval/tables.py
exit "$code"
