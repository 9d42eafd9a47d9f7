#!/usr/bin/env bash
# Train the text-to-image FLUX whose weights come with the repository, from scratch, on emoji of several vendors.
# Options are passed on to TaylorSeer-FLUX/train.py and override what stands here, e.g. --steps 200 --out outputs/short
# PROCESSES=4 shares every batch between four processes of one thread each, on a CPU (2 as it stands).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/setup.sh
source scripts/setup.sh
shown=no  # whether the command is only to show something
case " $* " in *" --help "* | *" -h "* | *" --dry-run "*) shown=yes ;; esac
case " $* " in
  *" --data"*) ;;
  *) if [[ $shown == no && -z "${EMOJI_DATA:-}" ]]; then bash scripts/get_emoji.sh; fi ;;
esac
launch=(python)
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  settings=()
else
  # As the shipped weights were trained, in two processes of one thread each: one to two hours on two cores with bf16
  # matrix units, much longer without. In bf16 the reference attention is faster on a CPU than the fused one.
  settings=(--steps 3600 --lr-warmup-steps 200 --attention reference)
  if command -v "${CXX:-g++}" >/dev/null; then settings+=(--compile); fi
  if [[ $shown == no ]]; then
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    launch=(python -m torch.distributed.run --standalone --nproc_per_node="${PROCESSES:-2}")
  fi
fi
exec "${launch[@]}" TaylorSeer-FLUX/train.py --out outputs/flux-emoji ${settings[@]+"${settings[@]}"} "$@"
