#!/usr/bin/env bash
# Train the HunyuanVideo whose weights come with the repository, from scratch, on clips of moving objects, which need no files.
# Options are passed on to TaylorSeer-HunyuanVideo/train.py and override what stands here, e.g. --steps 200 --output-dir outputs/short
# PROCESSES=2 shares every batch between two processes of one thread each, on a CPU (1 as it stands).
# It takes about half an hour on a core that has bf16 products; elsewhere --precision fp32 is faster, and takes an hour.
cd "$(dirname "$0")/.." && SETTINGS="--steps 3000 --batch-size 24 --lr-warmup-steps 100" PROCESSES="${PROCESSES:-1}" \
  exec bash scripts/train_embedded.sh TaylorSeer-HunyuanVideo outputs/hunyuan-clips "" "" "$@"
