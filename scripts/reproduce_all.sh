#!/usr/bin/env bash
# All published tables: flags go to eval/reproduce.py for each, e.g. --smoke, --estimate, --num-samples 100.
# One after the other; with --smoke side by side, each with its share of the cores, and a table is printed when it is done
# (JOBS=1 bash scripts/reproduce_all.sh --smoke: one after the other, to be looked at).
# A table that cannot be run in full says why and the others follow; the exit code tells.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh >/dev/null # before several of them find that there is no environment

tables=(dit wan hunyuan flux hidream) # the longest smoke run first
cores="$(nproc 2>/dev/null || sysctl -n hw.ncpu)"
case " $* " in
  *" --output-dir"*)
    echo "reproduce_all: error: --output-dir is for one table; leave it out" >&2
    exit 2
    ;;
  *" --smoke "*) jobs="${JOBS:-$((cores < ${#tables[@]} ? cores : ${#tables[@]}))}" ;;
  *) jobs="${JOBS:-1}" ;;
esac

kept="$(mktemp -d)"
trap 'rm -rf "$kept"' EXIT
run() { # TABLE [FLAGS]; its output at once, or whole at the end where others run beside it
  local table="$1" code=0 log="$kept/$1.log"
  echo "== $table" >&2
  if ((jobs == 1)); then
    bash scripts/reproduce.sh "$@" || code=$?
  else
    bash scripts/reproduce.sh "$@" >"$kept/$table.out" 2>"$log" || code=$?
    cat "$kept/$table.out"
    if ((code)); then tr '\r' '\n' <"$log" | tail -n 20 >&2; fi
    echo "== $table: done" >&2
  fi
  echo "$code" >"$kept/code-$table"
  ((code == 0 || code == 2)) || exit 255 # for xargs: no more of them
}
export -f run
export kept jobs
if ((jobs > 1)); then export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > jobs ? cores / jobs : 1))}"; fi
printf '%s\n' "${tables[@]}" | xargs -P "$jobs" -I '{}' bash -c 'run "$@"' run '{}' "$@" || true
sort -n "$kept"/code-* | tail -n 1 | (read -r code && exit "$code")
