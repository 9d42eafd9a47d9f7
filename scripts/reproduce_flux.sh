#!/usr/bin/env bash
# The published tables of FLUX.1-dev (HyCa Table 2, the paper, ChebBooster, ToCa, FoCa): FLOPs, latency, ImageReward, CLIP score, PSNR, SSIM, LPIPS.
# bash scripts/reproduce_flux.sh --smoke       the whole way on the embedded model, in minutes
# bash scripts/reproduce_flux.sh --estimate    rows, samples, GPU hours and disk
# bash scripts/reproduce_flux.sh --prompt-file DrawBench200.txt
exec bash "$(dirname "$0")/reproduce.sh" flux "$@"
