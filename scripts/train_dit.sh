#!/usr/bin/env bash
# Train the DiT whose weights come with the repository, from scratch, on Fashion-MNIST.
# Options are passed on to TaylorSeer-DiT/train.py and override what stands here, e.g. --steps 200 --out outputs/short
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
case " $* " in
  *" --data"* | *" --help "* | *" -h "* | *" --dry-run "*) ;;
  *) bash scripts/get_fashion_mnist.sh ;;
esac
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  settings=()
else
  # As the shipped weights were trained: an hour or two on two cores with bf16 matrix units, much longer without.
  # In bf16 the reference attention is faster on a CPU than the fused one.
  settings=(--steps 5600 --attention reference)
  if command -v "${CXX:-g++}" >/dev/null; then settings+=(--compile); fi
fi
exec python TaylorSeer-DiT/train.py --out outputs/dit-fashion ${settings[@]+"${settings[@]}"} "$@"
