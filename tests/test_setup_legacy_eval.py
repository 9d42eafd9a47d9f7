"""scripts/setup_legacy_eval.sh makes its environment once, wholly, and says what is in the way."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = "setup_legacy_eval.sh"
FAKE_PYTHON = r"""#!/usr/bin/env bash
case "$1 $2" in
  "-c import sys; sys.exit(sys.version_info[:2] != (3, 11))") [[ -z "$OTHER" || "$0" == *.venv* ]] ;;
  "-m venv") echo "venv $3" >>"$LOG"; rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
  "-m pip") echo "pip ${@:3}" >>"$LOG" ;;
  "-m uv") [[ "$3" != --version ]] || exit 1; echo "${UV_COMPILE_BYTECODE} ${@:4}" >>"$LOG"; [[ -z "$FAIL" ]] ;;
  "-c import vbench, ImageReward") echo "import" >>"$LOG"; echo "printed by a library"; [[ -z "$BROKEN" ]] ;;
  "-V ") echo "Python 3.${OTHER:-11}.7" ;;
  *) exit 9 ;;
esac
"""


class Checkout:
    """A repository in a folder with a space in its name, with a python that only pretends."""

    def __init__(self, folder: Path) -> None:
        self.root, self.log = folder / "a checkout", folder / "log"
        (self.root / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / SCRIPT, self.root / "scripts")
        shutil.copy(ROOT / "constraints.txt", self.root)
        self.pins = self.root / "envs" / "legacy-eval"
        self.pins.mkdir(parents=True)
        for name in ("requirements.txt", "constraints.txt", "overrides.txt"):
            shutil.copy(ROOT / "envs" / "legacy-eval" / name, self.pins)
        self.fake = folder / "bin"
        self.fake.mkdir()
        for name in ("python3", "python3.11"):
            (self.fake / name).write_text(FAKE_PYTHON)
            (self.fake / name).chmod(0o755)

    def setup(self, **variables: str) -> subprocess.CompletedProcess:
        environment = {
            "PATH": f"{self.fake}:/usr/bin:/bin",
            "LOG": str(self.log),
            "OTHER": "",
            "FAIL": "",
            "BROKEN": "",
        }
        return subprocess.run(
            ["bash", str(self.root / "scripts" / SCRIPT)],
            cwd="/", env=environment | variables, capture_output=True, text=True, check=False,
        )  # fmt: skip

    @property
    def did(self) -> list[str]:
        """First words of what was done."""
        return [line.split()[0] for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


ONCE = ["venv", "pip", "1", "import"]


def test_it_installs_the_pinned_set_once_with_bytecode(checkout):
    first = checkout.setup()
    assert first.returncode == 0, first.stderr
    assert checkout.did == ONCE
    install = checkout.log.read_text().splitlines()[2]
    folder = "envs/legacy-eval"
    assert install.endswith(
        f"-r {folder}/requirements.txt -c {folder}/constraints.txt --override {folder}/overrides.txt"
    )
    second = checkout.setup()
    python = f"{checkout.root.resolve()}/{folder}/.venv/bin/python\n"
    assert (second.returncode, second.stdout, second.stderr) == (0, python, "")
    assert first.stdout == python, "and nothing that a library prints"
    assert checkout.did == ONCE


def test_changed_pins_are_put_over_what_is_there(checkout):
    checkout.setup()
    with (checkout.pins / "constraints.txt").open("a") as file:
        file.write("another==1.0\n")
    checkout.setup()
    assert checkout.did == [*ONCE, *ONCE[1:]]


@pytest.mark.parametrize("how", ["FAIL", "BROKEN"])
def test_what_failed_or_was_killed_is_done_anew_from_the_start(checkout, how):
    done = checkout.setup(**{how: "1"})
    assert (done.returncode, done.stdout) == (2, "")
    assert "call this script again" in done.stderr.splitlines()[-1]
    assert checkout.setup().returncode == 0
    assert checkout.did[-4:] == ONCE
    assert "--clear" in checkout.log.read_text()


def test_another_python_than_3_11_is_refused_with_the_remedy(checkout):
    done = checkout.setup(OTHER="13")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Python 3.11 is needed" in done.stderr
    assert "(python3 is Python 3.13.7); install it, e.g. uv python install 3.11" in done.stderr
    assert checkout.did == []
