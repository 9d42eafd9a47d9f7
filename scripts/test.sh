#!/usr/bin/env bash
# Check style and types and run the tests: bash scripts/test.sh [pytest options], e.g. -m "not slow" or tests/test_scripts.py -n 0
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
python -m ruff check .
python -m ruff format --check .
python -m mypy
exec python -m pytest -n "${TEST_WORKERS:-2}" "$@"
