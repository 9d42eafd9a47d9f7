#!/usr/bin/env bash
# Check style and types and run the tests that take about a second at most; with --all the slow ones too.
# bash scripts/test.sh [--all] [pytest options], e.g. --all tests/test_scripts.py -n 0
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
selection=(-m "not slow")
if [[ "${1:-}" == --all ]]; then
  selection=()
  shift
fi
python -m ruff check .
python -m ruff format --check .
python -m mypy
exec python -m pytest -n "${TEST_WORKERS:-2}" "${selection[@]}" "$@"
