#!/usr/bin/env bash
# LoopSeer's evidence, ablations and transfer on the five embedded models: records and figures into results/, tables into the
# documents. Options go to eval/beyond.py for each model, e.g. --num-samples 16. Killed, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
code=0
for study in evidence ablations transfer; do
  flags=()
  [[ $study == evidence ]] || flags=("--$study")
  for model in fashion-mnist flux-tiny hidream-tiny hunyuan-tiny wan-tiny; do
    echo "== $model, $study" >&2
    # What fails is a row of its table: the other models go on, and the exit code tells.
    python eval/beyond.py --model "$model" "${flags[@]}" --results results "$@" || code=$?
    [[ $code == 0 || $code == 2 ]] || exit "$code"
  done
done
case " $* " in *" --help "* | *" -h "* | *" --dry-run "*) exit "$code" ;; esac
python eval/tables.py
exit "$code"
