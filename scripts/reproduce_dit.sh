#!/usr/bin/env bash
# The published tables of DiT-XL/2 (the paper, ChebBooster, ProCache, RFC): FLOPs, latency, FID, sFID, IS, precision.
# bash scripts/reproduce_dit.sh --smoke       the whole way on the embedded model, in minutes
# bash scripts/reproduce_dit.sh --estimate    rows, samples, GPU hours and disk
# bash scripts/reproduce_dit.sh --reference VIRTUAL_imagenet256_labeled.npz
exec bash "$(dirname "$0")/reproduce.sh" dit "$@"
