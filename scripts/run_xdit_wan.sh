#!/usr/bin/env bash
# Sample Wan2.1 on several processes. Without arguments: the embedded model, every video by two processes.
# With arguments they go to TaylorSeers-xDiT/run_wan.py, on NUM_PROCESSES GPUs (default: all), e.g. --prompt "a fox in the snow"
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
export TAYLORSEER_SCRIPT=scripts/run_xdit_wan.sh
if [ $# -eq 0 ]; then
  export OMP_NUM_THREADS=1
  exec python -m torch.distributed.run --standalone --nproc_per_node=2 TaylorSeer-Wan2.1/generate.py --ulysses-degree 2 --compare
fi
exec python -m torch.distributed.run --standalone --nproc_per_node="${NUM_PROCESSES:-auto}" TaylorSeers-xDiT/run_wan.py "$@"
