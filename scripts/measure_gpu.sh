#!/usr/bin/env bash
# Measure every backbone at its published size on a GPU, on random weights: GPU tests, steps, whole runs, memory, all methods,
# diffusers and cache-dit where installed, text encoders and autoencoders, beside what the device attains.
#
#   bash scripts/measure_gpu.sh                        all of it; killed or called again, it goes on where it stopped
#   bash scripts/measure_gpu.sh --list                 the slices and how far they are; --estimate: how long on an H100
#   bash scripts/measure_gpu.sh --slice flux-steps     one slice, of under 9 minutes (--budget-s)
#   bash scripts/measure_gpu.sh --python /path/python3 with that Python; or TAYLORSEER_PYTHON=/path/python3
#   bash scripts/measure_gpu.sh --device cpu --tiny    a trial of the whole, in minutes
#
# Needs torch, numpy, einops, safetensors, pillow and tqdm, and neither an installation of this project nor its weights. Without
# --python, TAYLORSEER_PYTHON and a python3 that has these, scripts/setup.sh makes an environment.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${TAYLORSEER_PYTHON:-}"
arguments=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --python)
      [[ -n "${2-}" ]] || { echo "measure_gpu.sh: error: --python needs the path of a Python" >&2 && exit 2; }
      python="$2" && shift 2
      ;;
    --python=*) python="${1#*=}" && shift ;;
    *) arguments+=("$1") && shift ;;
  esac
done
needed='import sys; assert sys.version_info >= (3, 11), "3.11 or newer is needed"; import einops, numpy, PIL, safetensors, torch, tqdm'
if [[ -n "$python" ]]; then
  if ! told="$("$python" -c "$needed" 2>&1)"; then
    echo "measure_gpu.sh: error: $python cannot be used (${told##*$'\n'}); install what is missing, or name another by --python" >&2
    exit 2
  fi
elif python3 -c "$needed" 2>/dev/null; then
  python=python3
else
  source scripts/setup.sh
  python=python
fi
roots="$PWD/common:$PWD/TaylorSeer-DiT:$PWD/TaylorSeer-FLUX:$PWD/TaylorSeer-HunyuanVideo:$PWD/TaylorSeer-Wan2.1:$PWD/TaylorSeer-HiDream:$PWD/eval"
export PYTHONPATH="$roots${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" eval/measure_gpu.py ${arguments[@]+"${arguments[@]}"}
