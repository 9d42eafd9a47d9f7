#!/usr/bin/env bash
# The published tables of Wan2.1-T2V-1.3B (MagCache, EasyCache, TeaCache): FLOPs, latency, PSNR, SSIM, LPIPS.
# bash scripts/reproduce_wan.sh --smoke       the whole way on the embedded model, in minutes
# bash scripts/reproduce_wan.sh --estimate    rows, samples, GPU hours and disk
# bash scripts/reproduce_wan.sh --prompt-file VBench_full_info.json
exec bash "$(dirname "$0")/reproduce.sh" wan "$@"
