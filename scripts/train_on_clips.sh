#!/usr/bin/env bash
# What train_wan.sh and train_hunyuan.sh share: bash scripts/train_on_clips.sh FOLDER OUT [options of FOLDER/train.py]
# STEPS: optimiser steps on a CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/setup.sh
source scripts/setup.sh
folder="$1" out="$2"
shift 2
shown=no  # whether the command is only to show something
case " $* " in *" --help "* | *" -h "* | *" --dry-run "*) shown=yes ;; esac
case " $* " in
  *" --data"*) ;;
  *) if [[ $shown == no && -z "${FASHION_MNIST:-}" ]]; then bash scripts/get_fashion_mnist.sh; fi ;;
esac
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  settings=()
else
  # As the shipped weights were trained, in one process of one thread: about 80 minutes on a core with bf16 matrix units,
  # much longer without. In bf16 the reference attention is faster on a CPU than the fused one.
  settings=(--steps "$STEPS" --batch-size 32 --lr-warmup-steps 200 --attention reference)
  if command -v "${CXX:-g++}" >/dev/null; then settings+=(--compile); fi
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
fi
exec python "$folder/train.py" --out "$out" ${settings[@]+"${settings[@]}"} "$@"
