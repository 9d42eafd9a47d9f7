#!/usr/bin/env bash
# The published tables of HunyuanVideo (HyCa Table 3, the paper, LinCa, LESA): FLOPs, latency, VBench, PSNR, SSIM, LPIPS.
# bash scripts/reproduce_hunyuan.sh --smoke       the whole way on the embedded model, in minutes
# bash scripts/reproduce_hunyuan.sh --estimate    rows, samples, GPU hours and disk
# bash scripts/reproduce_hunyuan.sh --prompt-file VBench_full_info.json
exec bash "$(dirname "$0")/reproduce.sh" hunyuan "$@"
