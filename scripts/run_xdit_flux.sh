#!/usr/bin/env bash
# Sample FLUX on several processes. Without arguments: the embedded model, whose prompts two processes share.
# With arguments they go to TaylorSeers-xDiT/run_flux.py, on NUM_PROCESSES GPUs (default: all), e.g. --prompt "a fox in the snow"
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
export TAYLORSEER_SCRIPT=scripts/run_xdit_flux.sh
if [ $# -eq 0 ]; then
  export OMP_NUM_THREADS=1
  exec python -m torch.distributed.run --standalone --nproc_per_node=2 TaylorSeer-FLUX/sample.py --compare
fi
exec python -m torch.distributed.run --standalone --nproc_per_node="${NUM_PROCESSES:-auto}" TaylorSeers-xDiT/run_flux.py "$@"
