#!/usr/bin/env bash
# What the reproduce_*_flops.sh share; they source it: source scripts/count_flops.sh NAME [FOLDER]
# count RECORD FLAGS... adds a run of eval/flops.py to a record, and finish prints the table of NAME. The records are made in
# a folder of their own and replace those of FOLDER/NAME (default: results/NAME) when all counts are done: a count that fails
# or is killed leaves the old ones as they are.
# shellcheck source=scripts/setup.sh
source scripts/setup.sh
name="$1" results="${2:-results}"
mkdir -p "$results/$name"
made="$(mktemp -d "$results/$name/.counting.XXXXXX")"
trap 'rm -rf "$made"' EXIT
count() { python eval/flops.py --out "$made/$1.json" "${@:2}" >/dev/null; }
finish() {
  mv -f "$made"/*.json "$results/$name/"
  python eval/tables.py --results "$results" --print "$name-flops"
}
