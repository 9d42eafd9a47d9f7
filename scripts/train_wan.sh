#!/usr/bin/env bash
# Train the text-to-video Wan2.1 whose weights come with the repository, from scratch, on clips of moving Fashion-MNIST objects.
# Options are passed on to TaylorSeer-Wan2.1/train.py and override what stands here, e.g. --steps 200 --output-dir outputs/short
# PROCESSES=2 shares every batch between two processes of one thread each, on a CPU (1 as it stands).
# On a core with bf16 matrix units it takes about 80 minutes, much longer without.
cd "$(dirname "$0")/.." && SETTINGS="--steps 3600 --batch-size 32 --lr-warmup-steps 200" PROCESSES="${PROCESSES:-1}" \
  exec bash scripts/train_embedded.sh TaylorSeer-Wan2.1 outputs/wan-clips get_fashion_mnist.sh FASHION_MNIST "$@"
