#!/usr/bin/env bash
# Sample FLUX. Without arguments: the embedded text-to-image model on its prompts, uncached, TaylorSeer and FORA side by side.
# With arguments they go to TaylorSeer-FLUX/sample.py, e.g. --model flux-dev --prompt "a photo of a fox in the snow"
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
[ $# -gt 0 ] || set -- --compare
export TAYLORSEER_SCRIPT=scripts/run_flux.sh
exec python TaylorSeer-FLUX/sample.py "$@"
