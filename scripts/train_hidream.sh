#!/usr/bin/env bash
# Train the text-to-image HiDream whose weights come with the repository, from scratch, on emoji of several vendors.
# Options are passed on to TaylorSeer-HiDream/train.py and override what stands here, e.g. --steps 200 --output-dir outputs/short
# PROCESSES=2 shares every batch between two processes of one thread each, on a CPU (1 as it stands).
# On a core with bf16 matrix units it takes about 90 minutes, much longer without.
cd "$(dirname "$0")/.." && SETTINGS="--steps 4200 --batch-size 64 --lr-warmup-steps 200" PROCESSES="${PROCESSES:-1}" \
  exec bash scripts/train_embedded.sh TaylorSeer-HiDream outputs/hidream-emoji get_emoji.sh EMOJI_DATA "$@"
