#!/usr/bin/env bash
# What the reproduce_*.sh share: bash scripts/reproduce.sh TABLE [FLAGS of eval/reproduce.py]. Published figures beside ours, as
# Markdown, LaTeX and CSV in outputs/reproduce/TABLE. On several GPUs the samples are shared; GPUS=1 takes one alone.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
gpus="${GPUS:-$({ nvidia-smi -L 2>/dev/null || true; } | wc -l)}"
case " $* " in
  *" --smoke "* | *" --estimate "* | *" --dry-run "* | *" --help "* | *" -h "*) gpus=1 ;;
esac
if ((gpus > 1)); then
  exec torchrun --nproc_per_node="$gpus" eval/reproduce.py "$@"
fi
exec python eval/reproduce.py "$@"
