#!/usr/bin/env bash
# Make the environment that every other script runs in. A second call does nothing and returns at once.
#
#   bash scripts/setup.sh             install; prints the folder that holds the environment's python
#   source scripts/setup.sh           install and put that folder first on PATH (what the other scripts do)
#   LIGHT=1 bash scripts/setup.sh     leave out metrics, parallelism and rivals' packages: no torchvision, and a CPU build
#                                     of torch where PIP_FIND_LINKS or UV_FIND_LINKS offers one
#
# An active virtual or conda environment (not conda's base) is used as it is when it meets pyproject.toml, and is given
# the pinned versions when it does not. Without one, everything goes into .venv of this repository.

if [[ "${BASH_SOURCE[0]}" != "$0" ]]; then
  _taylorseer_bin="$(bash "${BASH_SOURCE[0]}")" || return
  [[ "$PATH" == "$_taylorseer_bin:"* ]] || export PATH="$_taylorseer_bin:$PATH"
  unset _taylorseer_bin
  return
fi

set -euo pipefail
root="$(cd "$(dirname "$0")/.." >/dev/null && pwd -P)"
cd "$root"

say() { echo "setup: $*" >&2; }
fail() {
  say "error: $*"
  exit 2
}
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if new_enough "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "Python 3.11 or newer is needed and none is on PATH (python3 is $(python3 -V 2>&1 || true))"
}

# Install the extras $wanted into the environment of $python.
install() {
  local constraints=constraints.txt torch=()
  "$python" -m uv --version >/dev/null 2>&1 ||
    "$python" -m pip install -q --disable-pip-version-check -c constraints.txt uv >&2
  if [[ "$wanted" == dev ]]; then
    # The torch of constraints.txt exists on PyPI with CUDA only; 2.13.0 is the other tested version (environment.yml).
    # A torch that is already there stays: replacing it could leave a torchvision behind that no longer fits.
    constraints="$(mktemp)"
    # shellcheck disable=SC2064 # the name as it is now
    trap "rm -f '$constraints'" EXIT
    grep -vE '^(torch|torchvision|triton|(nvidia|cuda)-[a-z0-9-]+)==' constraints.txt >"$constraints"
    "$python" -c 'from importlib.metadata import version; version("torch")' 2>/dev/null || torch=(torch==2.13.0)
    export UV_FIND_LINKS="${UV_FIND_LINKS:-$(tr -s ' ' ',' <<<"${PIP_FIND_LINKS:-}")}"
    [[ -n "$UV_FIND_LINKS" ]] || unset UV_FIND_LINKS
  fi
  # As pip does, trust what the system trusts; uv's own list knows no certificates of an organisation's proxy.
  export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}"
  # Without bytecode, importing diffusers takes 19 s in every process where Python may not write it (instead of 6-8 s).
  UV_COMPILE_BYTECODE=1 "$python" -m uv pip install --python "$python" -c "$constraints" \
    ${torch[@]+"${torch[@]}"} -e ".[$wanted]" >&2
  unmet="$(find_unmet)"
  [[ -z "$unmet" ]] || fail "$environment still lacks $unmet"
}

find_unmet() { "$python" scripts/unmet_requirements.py "$wanted" | paste -sd ';' -; }

if [[ "${LIGHT:-0}" == 1 ]]; then wanted=dev; else wanted=all,dev; fi

environment="${VIRTUAL_ENV:-}"
if [[ -z "$environment" && "${CONDA_DEFAULT_ENV:-base}" != base ]]; then environment="${CONDA_PREFIX:-}"; fi
if [[ -n "$environment" && ! -x "$environment/bin/python" ]]; then
  say "the active environment $environment has no bin/python and is ignored"
  environment=""
fi

if [[ -n "$environment" && ! "$environment" -ef .venv ]]; then
  python="$environment/bin/python"
  new_enough "$python" || fail "$environment holds $("$python" -V 2>&1); Python 3.11 or newer is needed"
  unmet="$(find_unmet)"
  if [[ -n "$unmet" ]]; then
    say "$environment lacks $unmet; installing the pinned versions"
    install
  fi
else
  environment="$root/.venv"
  python="$environment/bin/python"
  stamp="$environment/.taylorseer-setup"
  fingerprint="$(cat pyproject.toml constraints.txt | cksum) $("$python" -V 2>/dev/null || true) $root"
  installed="$(cat "$stamp" 2>/dev/null || true)"
  if [[ "$installed" != "$fingerprint $wanted" && "$installed" != "$fingerprint all,dev" ]]; then
    say "installing .[$wanted] into $environment"
    if ! "$python" -m pip --version >/dev/null 2>&1; then
      base="$(find_python)"
      "$base" -m venv "$environment" >&2 || fail "$base -m venv failed (Debian and Ubuntu: apt install python3-venv)"
    fi
    new_enough "$python" || fail "$environment holds $("$python" -V 2>&1); remove it, Python 3.11 or newer is needed"
    install
    fingerprint="$(cat pyproject.toml constraints.txt | cksum) $("$python" -V) $root"
    echo "$fingerprint $wanted" >"$stamp"
  fi
fi
echo "$environment/bin"
