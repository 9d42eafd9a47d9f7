#!/usr/bin/env bash
# All published tables, one after the other: flags go to eval/reproduce.py for each, e.g. --smoke, --estimate, --num-samples 100.
# A table that cannot be run in full says why and the others follow; the exit code tells.
set -euo pipefail
cd "$(dirname "$0")/.."
code=0
for table in flux dit hunyuan wan hidream; do
  echo "== $table" >&2
  bash scripts/reproduce.sh "$table" "$@" || code=$?
  [[ $code == 0 || $code == 2 ]] || exit "$code"
done
exit "$code"
