#!/usr/bin/env bash
# Train the HunyuanVideo whose weights come with the repository, from scratch, on clips of moving Fashion-MNIST objects.
# Options are passed on to TaylorSeer-HunyuanVideo/train.py and override what stands here, e.g. --steps 200 --out outputs/short
cd "$(dirname "$0")/.." && STEPS=3200 exec bash scripts/train_on_clips.sh TaylorSeer-HunyuanVideo outputs/hunyuan-clips "$@"
