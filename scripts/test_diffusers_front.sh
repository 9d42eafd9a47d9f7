#!/usr/bin/env bash
# Run diffusers' own tests of its caches against ours: `enable_cache` puts a cache of taylorseers_diffusers on. A minute or two.
# Usage: bash scripts/test_diffusers_front.sh [SOURCE] [PYTEST ARGUMENT...]
# SOURCE: a checkout of huggingface/diffusers, or a git directory; else $DIFFUSERS_SOURCE, else where diffusers is installed from.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
source_tree=${DIFFUSERS_SOURCE:-}
if [ $# -gt 0 ] && [ -d "$1" ]; then source_tree=$1; shift; fi
if [ -z "$source_tree" ]; then
  source_tree=$(python -c 'import pathlib, diffusers; print(pathlib.Path(diffusers.__file__).parents[2])')
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ -d "$source_tree/tests/pipelines" ]; then
  cp -r "$source_tree/tests" "$scratch"
elif ! git --git-dir="$source_tree" archive HEAD tests 2> /dev/null | tar -x -C "$scratch" 2> /dev/null; then
  version=$(python -c 'import diffusers; print(diffusers.__version__)')
  echo "$source_tree has no tests of diffusers; get its source (100 MB) and name the folder:" >&2
  echo "  git clone --depth 1 --branch v$version https://github.com/huggingface/diffusers" >&2
  exit 2
fi
python -c 'import parameterized, requests_mock' 2> /dev/null ||
  echo "some of them need packages that are not here: pip install parameterized requests-mock" >&2
mapfile -t tests < <(grep -l CacheTesterMixin -r "$scratch/tests/models/transformers" "$scratch/tests/pipelines" --include='test_*.py' |
  grep -v test_pipelines_common | sort)
export PYTHONPATH=$PWD/tests/shared${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} DIFFUSERS_TEST_DEVICE=cpu
python -m pytest -p diffusers_own_tests -p no:cacheprovider -q --rootdir "$scratch" --continue-on-collection-errors \
  -k 'cache or broadcast' "$@" "${tests[@]}"
