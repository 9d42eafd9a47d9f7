#!/usr/bin/env bash
# Train the text-to-video Wan2.1 whose weights come with the repository, from scratch, on clips of moving Fashion-MNIST objects.
# Options are passed on to TaylorSeer-Wan2.1/train.py and override what stands here, e.g. --steps 200 --out outputs/short
cd "$(dirname "$0")/.." && STEPS=3600 exec bash scripts/train_on_clips.sh TaylorSeer-Wan2.1 outputs/wan-clips "$@"
