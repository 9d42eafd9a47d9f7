#!/usr/bin/env bash
# What the train_*.sh share: bash scripts/train_embedded.sh FOLDER OUT FETCH VARIABLE [options of FOLDER/train.py]
# FETCH: the script that gets the data, unless VARIABLE says where they are; both empty where none are needed. On a CPU: SETTINGS, options that the shipped
# weights were trained with; PROCESSES, how many processes of one thread share every batch (unset: one of all threads).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/setup.sh
source scripts/setup.sh
folder="$1" out="$2" fetch="$3" variable="$4"
shift 4
shown=no  # whether the command is only to show something
case " $* " in *" --help "* | *" -h "* | *" --dry-run "*) shown=yes ;; esac
if [[ $shown == no && -n $fetch && " $* " != *" --data"* && -z "${!variable:-}" ]]; then bash "scripts/$fetch"; fi
launch=(python) settings=()
if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  # In bf16 the reference attention is faster on a CPU than the fused one.
  read -ra settings <<<"$SETTINGS --attention reference"
  if command -v "${CXX:-g++}" >/dev/null; then settings+=(--compile); fi
  if [[ -n "${PROCESSES:-}" ]]; then
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    if [[ $shown == no && $PROCESSES != 1 ]]; then
      launch=(python -m torch.distributed.run --standalone --nproc_per_node="$PROCESSES")
    fi
  fi
fi
exec "${launch[@]}" "$folder/train.py" --output-dir "$out" ${settings[@]+"${settings[@]}"} "$@"
