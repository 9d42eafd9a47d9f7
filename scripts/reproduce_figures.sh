#!/usr/bin/env bash
# The paper's kinds of figure, as PNG and SVG, beside the records that they are drawn from.
# Usage: bash scripts/reproduce_figures.sh [--dry-run] [--prompt-file FILE] [MODEL ...] [FOLDER]
#
#   MODEL    default: the five embedded models; a published one needs its weights, and one with prompts --prompt-file
#   FOLDER   of the records and figures (default: results)
#
#   published-BACKBONE                     published quality over published speed-ups, of every source in results/paper
#   features-MODEL, trajectories-MODEL     similarity, forecast error and paths of features, of a record features-MODEL.json
#                                          that an uncached run makes where there is none: minutes for all embedded models
#   compare-MODEL                          quality over acceleration of every method, of a record of scripts/compare.sh
#   beyond-MODEL, beyond-MODEL-lists       LoopSeer beside the others, and its full steps, of a record of scripts/beyond.sh
#   samples-MODEL                          samples side by side, made in outputs/figures/MODEL and kept there
#
# Examples: bash scripts/reproduce_figures.sh flux-tiny
#           bash scripts/reproduce_figures.sh --prompt-file DrawBench200.txt flux-dev my-results
set -euo pipefail
cd "$(dirname "$0")/.."
methods=(fewer-steps taylorseer fora hicache teacache speca toca) # of the samples; one that a model has not fails alone
models=() folder=results prompts=() dry=()
case " $* " in *" --help "* | *" -h "*) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" && exit ;; esac
# shellcheck source=scripts/setup.sh
source scripts/setup.sh
known="$(python -c 'from evaluation.families import all_models; print(*all_models(), sep="\n")')"
while [[ $# -gt 0 ]]; do
  case "$1" in
    --dry-run) dry=(--dry-run) ;;
    --prompt-file)
      [[ -n "${2-}" ]] || { echo "reproduce_figures.sh: error: --prompt-file needs a file" >&2 && exit 2; }
      prompts=(--prompt-file "$2")
      shift
      ;;
    -*)
      echo "reproduce_figures.sh: error: $1 is unknown (see --help)" >&2
      exit 2
      ;;
    *) if grep -qxF -- "$1" <<<"$known"; then models+=("$1"); elif [[ $# == 1 ]]; then folder="$1"; else
      echo "reproduce_figures.sh: error: $1 is none of the models $(tr '\n' ' ' <<<"$known")" >&2
      exit 2
    fi ;;
  esac
  shift
done
[[ ${#models[@]} -gt 0 ]] || models=(fashion-mnist flux-tiny hidream-tiny hunyuan-tiny wan-tiny)
figures() { python eval/figures.py "$@" --results "$folder" "${dry[@]}"; }
find_record() { find "$folder" -mindepth 2 -maxdepth 2 -name "$1-${model//\//-}.json" -print -quit 2>/dev/null || true; }
figures published results/paper/*.json
code=0
for model in "${models[@]}"; do
  echo "== $model" >&2
  record="$(find_record features)"
  if [[ -z $record ]]; then
    figures measure --model "$model" "${prompts[@]}" || exit
    record="$(find_record features)"
  fi
  [[ -z $record ]] || figures features "$record"
  record="$(find_record compare)"
  if [[ -n $record ]]; then figures compare "$record"; else
    echo "no record of a comparison of $model in $folder; make it with: python eval/compare.py --model $model --results $folder" >&2
  fi
  record="$(find_record beyond)"
  [[ -z $record ]] || figures beyond "$record"
  made="outputs/figures/${model//\//-}"
  # A method that fails is a row without samples; the others are shown, and the exit code tells.
  python eval/compare.py --model "$model" "${prompts[@]}" --methods "${methods[@]}" --num-samples 5 --output-dir "$made" \
    "${dry[@]}" || code=$?
  [[ $code == 0 || $code == 2 ]] || exit "$code"
  [[ ! -f $made/record.json ]] || figures samples "$made"
done
exit "$code"
