#!/usr/bin/env bash
# Sample a pipeline of diffusers. Without arguments: the embedded FLUX inside diffusers' FluxPipeline on its prompts, uncached,
# TaylorSeer and FORA side by side.
# With arguments they go to TaylorSeers-Diffusers/run.py, e.g. --model black-forest-labs/FLUX.1-dev --prompt "a fox in the snow"
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
[ $# -gt 0 ] || set -- --compare
export TAYLORSEER_SCRIPT=scripts/run_diffusers.sh
exec python TaylorSeers-Diffusers/run.py "$@"
