#!/usr/bin/env bash
# Make the environment of VBench and ImageReward, envs/legacy-eval/.venv, which the main one calls (why they are apart, and
# what the versions are: envs/legacy-eval/requirements.txt). A second call does nothing and returns at once.
#
#   bash scripts/setup_legacy_eval.sh     install (6.5 GB, half a minute and the download); prints the path of its python
#
# It needs Python 3.11, on PATH or known to uv. To use an environment of your own instead, name its python in the variable
# TAYLORSEER_LEGACY_PYTHON. Weights are another matter: `python eval/vbench.py --help`.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." >/dev/null && pwd -P)"
cd "$root"

say() { echo "setup_legacy_eval: $*" >&2; }
fail() {
  say "error: $*"
  exit 2
}
is_311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in python3.11 python3 "$(uv python find 3.11 2>/dev/null || true)"; do
    if [[ -n "$candidate" ]] && is_311 "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "Python 3.11 is needed, as tokenizers 0.13 has no wheels for newer ones, and none is on PATH (python3 is" \
    "$(python3 -V 2>&1 || true)); install it, e.g. uv python install 3.11"
}

folder=envs/legacy-eval
environment="$root/$folder/.venv"
python="$environment/bin/python"
stamp="$environment/.taylorseer-setup"
pins=("$folder/requirements.txt" "$folder/constraints.txt" "$folder/overrides.txt")
fingerprint() { echo "$(cat "${pins[@]}" | cksum) $("$python" -V 2>/dev/null || true) $root"; }

if [[ "$(cat "$stamp" 2>/dev/null || true)" != "$(fingerprint)" ]]; then
  # Without a stamp an install was killed, and what it left may lack files: then begin anew. Changed pins are put over it.
  if [[ ! -f "$stamp" ]] || ! is_311 "$python"; then
    base="$(find_python)"
    say "making $environment with $("$base" -V)"
    "$base" -m venv --clear "$environment" >&2 || fail "$base -m venv failed (Debian and Ubuntu: apt install python3.11-venv)"
  fi
  rm -f "$stamp"
  "$python" -m uv --version >/dev/null 2>&1 ||
    "$python" -m pip install -q --disable-pip-version-check -c constraints.txt uv >&2 ||
    fail "pip could not install uv (the reason stands above); call this script again when it can"
  say "installing VBench and ImageReward, 130 packages, 6.5 GB"
  # As pip does, trust what the system trusts; uv's own list knows no certificates of an organisation's proxy.
  export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}"
  # Without bytecode, importing vbench takes 18 s in every process where Python may not write it.
  UV_COMPILE_BYTECODE=1 "$python" -m uv pip install --python "$python" -r "${pins[0]}" -c "${pins[1]}" \
    --override "${pins[2]}" >&2 || fail "the packages could not be installed (the reason stands above); call this script again"
  say "checking that they can be imported"
  "$python" -c 'import vbench, ImageReward' >/dev/null ||
    fail "they are installed and cannot be imported (the reason stands above; where it is libGL or libgthread, Debian and" \
      "Ubuntu have them in libgl1 and libglib2.0-0); call this script again"
  fingerprint >"$stamp"
fi
echo "$python"
