#!/usr/bin/env bash
# The published tables of HiDream-I1-Full (the authors' repository, TeaCache): latency, beside FLOPs of ours.
# bash scripts/reproduce_hidream.sh --smoke       the whole way on the embedded model, in minutes
# bash scripts/reproduce_hidream.sh --estimate    rows, samples, GPU hours and disk
# bash scripts/reproduce_hidream.sh --prompt-file DrawBench200.txt
exec bash "$(dirname "$0")/reproduce.sh" hidream "$@"
