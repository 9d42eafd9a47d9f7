"""The shell scripts parse, and setup.sh does its work once."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHELL_SCRIPTS = [*sorted(ROOT.glob("scripts/**/*.sh")), ROOT / ".ci" / "run"]

# Stands in for python in an environment: makes environments and "installs" by writing down what it was asked for.
FAKE_PYTHON = r"""#!/usr/bin/env bash
case "$1 $2" in
  "-m venv") echo "venv" >>"$LOG"; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-m pip") ;;
  "-m uv") [[ "$3" == --version ]] || { echo "${@:4}" >>"$LOG"; [[ -z "$FAIL" ]]; } ;;
  "-c import sys; sys.exit(sys.version_info < (3, 11))") [[ -z "$OLD" ]] ;;
  "-c import sys, torch; sys.exit(not torch.cuda.is_available())") [[ -n "$CUDA" ]] ;;
  "-c "*) ;;
  "scripts/unmet_requirements.py "*) if [[ -s "$LOG" ]]; then echo -n "$STUCK"; else echo -n "$UNMET"; fi ;;
  TaylorSeer-* | "-m torch.distributed.run") printf '%s|' "$@" >>"$LOG"; echo "${OMP_NUM_THREADS:-all}" >>"$LOG" ;;
  eval/flops.py*)
    echo "flops ${@:2}" >>"$LOG"
    [[ $(grep -c ^flops "$LOG") != "$FAIL_AT" ]] || exit 2
    echo "${@:4}" >>"$3" ;;
  eval/tables.py*) echo "table ${@:2}" ;;
  "-V ") echo "Python 3.${OLD:-11}.0" ;;
  *) exit 9 ;;
esac
"""


class Checkout:
    """A repository in a folder with a space in its name, with a python that only pretends."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        (self.root / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "setup.sh", self.root / "scripts")
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.root)
        self.fake = folder / "fake bin"
        self.add_python(self.fake / "python3")
        for version in (11, 12, 13):
            self.add_python(self.fake / f"python3.{version}")
        self.log = folder / "log"
        self.log.touch()

    def add_python(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FAKE_PYTHON)
        path.chmod(0o755)

    def bash(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        environment = {"PATH": f"{self.fake}:/usr/bin:/bin", "LOG": str(self.log)}
        environment |= dict.fromkeys(("FAIL", "FAIL_AT", "OLD", "UNMET", "STUCK", "CUDA"), "")
        command = ["bash", *arguments]
        return subprocess.run(
            command, cwd="/", env={**environment, **variables}, capture_output=True, text=True, check=False
        )

    def run(self, script: str, *arguments: str, **variables: str) -> list[str]:
        """What a script of ours does after setup, the arguments of each python command with bars between."""
        path = self.root / "scripts" / script
        for name in (script, "train_embedded.sh", "count_flops.sh"):
            shutil.copy(ROOT / "scripts" / name, path.with_name(name))
        for data in ("fashion_mnist", "emoji"):
            path.with_name(f"get_{data}.sh").write_text(f'echo "fetch {data}" >>"$LOG"')
        self.done = self.bash(str(path), *arguments, **variables)
        if not variables.get("FAIL_AT"):
            assert self.done.returncode == 0, self.done.stderr
        return [line for line in self.did if line.startswith(("fetch ", "TaylorSeer-", "-m|torch.distributed.run"))]

    def setup(self, **variables: str) -> subprocess.CompletedProcess:
        return self.bash(str(self.root / "scripts" / "setup.sh"), **variables)

    @property
    def did(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_script_parses_and_is_executable(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")


def test_setup_installs_the_pinned_set_once(checkout):
    first = checkout.setup()
    assert first.returncode == 0, first.stderr
    assert checkout.did[0] == "venv"
    assert checkout.did[1].endswith("-c constraints.txt -e .[all,dev]")
    second = checkout.setup()
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout == first.stdout == f"{checkout.root.resolve()}/.venv/bin\n"
    assert len(checkout.did) == 2


def test_setup_installs_again_when_the_pins_change(checkout):
    checkout.setup()
    with (checkout.root / "constraints.txt").open("a") as file:
        file.write("another==1.0\n")
    checkout.setup()
    assert [line.split()[0] for line in checkout.did] == ["venv", "install", "install"]


def test_setup_light_leaves_out_extras_and_is_met_by_the_full_set(checkout):
    assert checkout.setup(LIGHT="1").returncode == 0
    assert checkout.did[-1].endswith("-e .[dev]")
    assert "constraints.txt" not in checkout.did[-1].split()
    checkout.setup()
    assert checkout.did[-1].endswith("-e .[all,dev]")
    done = len(checkout.did)
    checkout.setup(LIGHT="1")
    assert len(checkout.did) == done


def test_setup_that_failed_is_tried_again(checkout):
    assert checkout.setup(FAIL="1").returncode != 0
    assert checkout.setup().returncode == 0
    assert [line.split()[0] for line in checkout.did] == ["venv", "install", "install"]


def test_setup_refuses_an_old_python_in_one_line(checkout):
    done = checkout.setup(OLD="9")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("setup: error: Python 3.11 or newer is needed")
    assert checkout.did == []


def test_setup_that_installed_and_still_lacks_something_says_so(checkout):
    done = checkout.setup(STUCK="a torchvision that fits")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(".venv still lacks a torchvision that fits\n")
    checkout.setup()
    assert [line.split()[0] for line in checkout.did] == ["venv", "install", "install"]


@pytest.mark.parametrize("kind", ["virtual", "conda"])
def test_setup_uses_the_active_environment(checkout, tmp_path, kind):
    active = tmp_path / "active env"
    checkout.add_python(active / "bin" / "python")
    conda = {"CONDA_PREFIX": str(active), "CONDA_DEFAULT_ENV": "mine"}
    variables = {"VIRTUAL_ENV": str(active)} if kind == "virtual" else conda
    met = checkout.setup(**variables)
    assert (met.stdout, met.stderr, checkout.did) == (f"{active}/bin\n", "", [])
    lacking = checkout.setup(UNMET="timm>=1 (not installed)", **variables)
    assert lacking.returncode == 0
    assert "lacks timm>=1 (not installed)" in lacking.stderr
    assert checkout.did[-1].startswith(f"install --python {active}/bin/python")
    assert not (checkout.root / ".venv").exists()


def test_setup_leaves_condas_base_alone(checkout, tmp_path):
    base = tmp_path / "base"
    checkout.add_python(base / "bin" / "python")
    done = checkout.setup(CONDA_PREFIX=str(base), CONDA_DEFAULT_ENV="base")
    assert done.stdout == f"{checkout.root.resolve()}/.venv/bin\n"


def test_sourced_setup_puts_python_first_and_reports_failure(checkout):
    script = checkout.root / "scripts" / "setup.sh"
    done = checkout.bash("-euc", 'source "$1"; source "$1"; command -v python; echo "$PATH"', "-", str(script))
    python, path = done.stdout.splitlines()
    assert python == f"{checkout.root.resolve()}/.venv/bin/python"
    assert path.count(".venv/bin") == 1
    (checkout.root / "constraints.txt").write_text("")
    failed = checkout.bash("-euc", 'source "$1"; echo went on', "-", str(script), FAIL="1")
    assert failed.returncode != 0
    assert "went on" not in failed.stdout


@pytest.mark.parametrize(
    ("script", "command"),
    [
        ("run_wan.sh", "TaylorSeer-Wan2.1/generate.py"),
        ("run_hunyuan.sh", "TaylorSeer-HunyuanVideo/sample_video.py"),
        ("run_hidream.sh", "TaylorSeer-HiDream/sampling.py"),
    ],
)
def test_run_scripts_compare_unless_told_otherwise(checkout, script, command):
    assert checkout.run(script) == [f"{command}|--compare|all"]
    assert checkout.run(script, "--prompt", "two cats", "")[1:] == [f"{command}|--prompt|two cats||all"]


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("run_*.sh")))
def test_run_scripts_name_themselves_to_the_command(script, tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / script, tmp_path / "scripts")
    (tmp_path / "scripts" / "setup.sh").write_text('PATH="$PWD:$PATH"')
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$TAYLORSEER_SCRIPT"')
    python.chmod(0o755)
    done = subprocess.run(["bash", tmp_path / "scripts" / script], capture_output=True, text=True, check=True)
    assert done.stdout == f"scripts/{script}\n"


CLOTHES, EMOJI = ("fashion_mnist", "FASHION_MNIST"), ("emoji", "EMOJI_DATA")
VIDEOS = "--steps 3000 --batch-size 24 --lr-warmup-steps 100"
TRAININGS = {
    # command; on a CPU, settings and processes of one thread; data and the variable that says where they are, if any
    "train_dit.sh": ("TaylorSeer-DiT/train.py|--output-dir|outputs/dit-fashion", "--steps 5600", None, *CLOTHES),
    "train_flux.sh": (
        "TaylorSeer-FLUX/train.py|--output-dir|outputs/flux-emoji",
        "--steps 3600 --batch-size 128 --lr-warmup-steps 200", 2, *EMOJI,
    ),
    "train_hidream.sh": (
        "TaylorSeer-HiDream/train.py|--output-dir|outputs/hidream-emoji",
        "--steps 4200 --batch-size 64 --lr-warmup-steps 200", 1, *EMOJI,
    ),
    "train_hunyuan.sh": (
        "TaylorSeer-HunyuanVideo/train.py|--output-dir|outputs/hunyuan-clips",
        VIDEOS, 1, None, None,
    ),
    "train_wan.sh": (
        "TaylorSeer-Wan2.1/train.py|--output-dir|outputs/wan-clips",
        VIDEOS, 1, None, None,
    ),
}  # fmt: skip


def on_cpu(command: str, settings: str) -> str:
    return "|".join([command, *settings.split(), "--attention", "reference"])


@pytest.mark.parametrize(("script", "training"), TRAININGS.items(), ids=TRAININGS)
def test_train_scripts_fetch_the_data_and_suit_the_device(checkout, script, training):
    command, settings, _, data, variable = training
    cpu = on_cpu(command, settings)
    fetch, one = [f"fetch {data}"] if data else [], {"PROCESSES": "1"}

    def did(*given: str, **environment: str) -> list[str]:
        checkout.log.write_text("")
        return checkout.run(script, *given, **environment)

    assert did(CXX="bash", **one) == [*fetch, f"{cpu}|--compile|1"]
    assert did(CXX="no-compiler", OMP_NUM_THREADS="3", **one) == [*fetch, f"{cpu}|3"]
    assert did(CUDA="1") == [*fetch, f"{command}|all"]
    assert did("--steps", "9", "--dry-run", CUDA="1") == [f"{command}|--steps|9|--dry-run|all"]
    if data:
        assert did("--data", "my images", CUDA="1") == [f"{command}|--data|my images|all"]
        assert did(CUDA="1", **{variable: "/images"}) == [f"{command}|all"]


@pytest.mark.parametrize(("script", "training"), TRAININGS.items(), ids=TRAININGS)
def test_train_scripts_share_the_batch_between_processes_on_a_cpu(checkout, script, training):
    """Unless there is only something to be shown, which each would do."""
    command, settings, processes, _, variable = training
    given, cpu = {"CXX": "no-compiler", **({variable: "/images"} if variable else {})}, on_cpu(command, settings)
    launched = "-m|torch.distributed.run|--standalone|--nproc_per_node={}|" + cpu + "|1"
    usual = {None: f"{cpu}|all", 1: f"{cpu}|1", 2: launched.format(2)}
    assert checkout.run(script, **given) == [usual[processes]]
    assert checkout.run(script, PROCESSES="4", **given)[1:] == [launched.format(4)]
    assert checkout.run(script, "--dry-run", PROCESSES="4", **given)[2:] == [f"{cpu}|--dry-run|1"]
    assert checkout.run(script, PROCESSES="4", CUDA="1", **given)[3:] == [f"{command}|all"]


COUNTED = {  # script: runs by record
    "dit": {"flops": 9}, "flux": {"flops": 20}, "hidream": {"flops": 11}, "hunyuan": {"flops": 7, "flops-720p": 1},
    "wan": {"flops": 5, "flops-14b-720p": 4},
}  # fmt: skip


@pytest.mark.parametrize(("name", "records"), COUNTED.items(), ids=COUNTED)
def test_a_count_that_fails_leaves_the_record_of_before(checkout, tmp_path, name, records):
    script, folder = f"reproduce_{name}_flops.sh", tmp_path / "my results" / name
    folder.mkdir(parents=True)
    for record in records:
        (folder / f"{record}.json").write_text("old")
    for at in (2, sum(records.values())):
        checkout.log.write_text("")
        checkout.run(script, str(folder.parent), FAIL_AT=str(at))
        assert checkout.done.returncode == 2
        assert [line.split()[0] for line in checkout.did].count("flops") == at
        assert {path.name: path.read_text() for path in folder.iterdir()} == {f"{r}.json": "old" for r in records}
    checkout.run(script, str(folder.parent))
    assert checkout.done.stdout == f"table --results {folder.parent} --print {name}-flops\n"
    made = {path.stem: len(path.read_text().splitlines()) for path in folder.iterdir()}
    assert made == records, "all rows of a record are new, and nothing else is there"


def test_unmet_requirements_are_those_missing_or_of_another_version():
    unmet = runpy.run_path(str(ROOT / "scripts" / "unmet_requirements.py"))["unmet"]
    project = {
        "name": "ours",
        "dependencies": ["pytest>=1", "torch<0.1", "no-such-package; python_version < '3'"],
        "optional-dependencies": {"all": ["ours[plot]"], "plot": ["no-such-package>=2"], "unasked": ["another-one"]},
    }
    found = list(unmet(project, ["all"]))
    assert found[0].startswith("torch<0.1 (has ")
    assert found[1:] == ["no-such-package>=2 (not installed)"]


def test_this_environment_meets_the_requirements():
    script = ROOT / "scripts" / "unmet_requirements.py"
    done = subprocess.run([sys.executable, script, "dev"], capture_output=True, text=True, check=True)
    assert done.stdout == "", "bash scripts/setup.sh brings what is missing"
