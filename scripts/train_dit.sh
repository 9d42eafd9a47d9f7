#!/usr/bin/env bash
# Train the DiT whose weights come with the repository, from scratch, on Fashion-MNIST.
# Options are passed on to TaylorSeer-DiT/train.py and override what stands here, e.g. --steps 200 --output-dir outputs/short
# PROCESSES=2 shares every batch between two processes of one thread each, on a CPU (one of all threads as it stands).
# On two cores with bf16 matrix units it takes an hour or two, much longer without.
cd "$(dirname "$0")/.." && SETTINGS="--steps 5600" \
  exec bash scripts/train_embedded.sh TaylorSeer-DiT outputs/dit-fashion get_fashion_mnist.sh FASHION_MNIST "$@"
