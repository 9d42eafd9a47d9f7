#!/usr/bin/env bash
# Train the text-to-image FLUX whose weights come with the repository, from scratch, on emoji of several vendors.
# Options are passed on to TaylorSeer-FLUX/train.py and override what stands here, e.g. --steps 200 --output-dir outputs/short
# PROCESSES=4 shares every batch between four processes of one thread each, on a CPU (2 as it stands).
# On two cores with bf16 matrix units it takes one to two hours, much longer without.
cd "$(dirname "$0")/.." && SETTINGS="--steps 3600 --batch-size 128 --lr-warmup-steps 200" PROCESSES="${PROCESSES:-2}" \
  exec bash scripts/train_embedded.sh TaylorSeer-FLUX outputs/flux-emoji get_emoji.sh EMOJI_DATA "$@"
