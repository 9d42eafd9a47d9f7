"""Imports run one way: command -> experiment -> sampler -> backbone -> toolkit -> forecaster; nothing imports a command."""

import ast
import functools
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from evaluation.backbones import PACKAGES

ROOT = Path(__file__).parents[1]
ROOTS = [
    ROOT / name
    for name in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["where"]
]
BACKBONES = sorted(set(PACKAGES.values()))
FRONTS = ["taylorseers_diffusers", "taylorseers_xdit"]
"""The forecaster on models of other libraries; of ours they know the toolkit, and backbones whose weights they convert."""
TOOLKIT = ("layers", "devices", "sampling", "io", "weights", "data", "text", "command", "training")
"""Packages of seerkit; each may import those before it. What lies in seerkit itself comes first of all."""
OF_COMMANDS = {f"{backbone}.{module}" for backbone in BACKBONES for module in ("flags", "pipeline")}
"""Modules that the commands of a backbone are made of."""
PARSING = (
    OF_COMMANDS
    | {"taylorseers_xdit.flags"}
    | {
        f"evaluation.{module}"
        for module in (
            "flags",
            "video_flags",
            "families",
            "calibration",
            "images",
            "videos",
            "fid_samples",
            "validation.generated",
            "gpu.measure",
        )
    }
)
"""What may import the parser and its flags, seerkit's own packages aside."""


def module_name(file: Path, root: Path) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_name(file, root): file
    for root in ROOTS
    for package in root.glob("*/__init__.py")
    for file in sorted(package.parent.rglob("*.py"))
}
SCRIPTS = [file for root in ROOTS for file in sorted(root.glob("*.py"))]


@functools.cache
def imports(file: Path) -> set[str]:
    """What a file imports, wherever in it: modules by full name, `package.module` for `from package import module`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            inside = {f"{node.module}.{name.name}" for name in node.names}
            found |= (inside & MODULES.keys()) | ({node.module} if inside - MODULES.keys() else set())
    return found


def package_of(module: str) -> str:
    return module.partition(".")[0]


OURS = {package_of(module) for module in MODULES}
IMPORTS = {module: {name for name in imports(file) if package_of(name) in OURS} for module, file in MODULES.items()}


def importers(package: str) -> dict[str, set[str]]:
    """What the modules of a package import of ours."""
    return {module: names for module, names in IMPORTS.items() if package_of(module) == package}


def outside(package: str, *allowed: str) -> dict[str, set[str]]:
    """Imports of a package that are neither its own nor of those allowed."""
    strange = {
        module: {name for name in names if package_of(name) not in {package, *allowed}}
        for module, names in importers(package).items()
    }
    return {module: names for module, names in strange.items() if names}


def rank(module: str) -> int:
    """Place of a module of seerkit in TOOLKIT, -1 for those of seerkit itself."""
    part = (*module.split("."), "")[1]
    return TOOLKIT.index(part) if part in TOOLKIT else -1


def test_the_walk_finds_modules_and_their_imports():
    assert {"cache_dic", "seerkit", "evaluation", *BACKBONES, *FRONTS} == OURS
    assert "flux.model" in IMPORTS["flux.sampler"]
    assert "hidream.config" in IMPORTS["evaluation.backbones"]
    assert ROOT / "eval" / "flops.py" in SCRIPTS


def test_the_forecaster_imports_nothing_of_ours():
    assert outside("cache_dic") == {}


def test_the_toolkit_imports_the_forecaster_alone():
    assert outside("seerkit", "cache_dic") == {}


def test_packages_of_the_toolkit_import_those_before_them():
    assert set(TOOLKIT) == {file.parent.name for file in MODULES["seerkit"].parent.glob("*/__init__.py")}
    upward = {
        (module, name)
        for module, names in importers("seerkit").items()
        for name in names
        if package_of(name) == "seerkit" and rank(name) > rank(module)
    }
    assert upward == set()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_backbone_imports_the_toolkit_and_itself(backbone):
    assert outside(backbone, "seerkit", "cache_dic") == {}


@pytest.mark.parametrize("front", FRONTS)
def test_a_front_stands_on_the_toolkit_and_backbones(front):
    others = set(FRONTS) - {front}
    assert outside(front, "seerkit", "cache_dic", *BACKBONES, *others) == {}


def test_the_evaluation_imports_configurations_of_backbones_alone():
    """A model, its sampler and its adapter are imported by name, when they are asked for."""
    assert outside("evaluation", "seerkit", "cache_dic", *FRONTS, *BACKBONES) == {}
    of_backbones = {
        name for names in importers("evaluation").values() for name in names if package_of(name) in BACKBONES
    }
    assert of_backbones == {f"{backbone}.config" for backbone in BACKBONES}


def test_commands_alone_parse():
    parsing = {module for module, names in IMPORTS.items() if any(name.startswith("seerkit.command") for name in names)}
    assert {module for module in parsing if not module.startswith(("seerkit.command", "seerkit.training"))} <= PARSING


def test_nothing_imports_a_command():
    importing = {(module, name) for module, names in IMPORTS.items() for name in names & OF_COMMANDS}
    assert {module for module, _ in importing} <= OF_COMMANDS
    commands = {file.stem for file in SCRIPTS}
    for file in (*MODULES.values(), *SCRIPTS):
        assert not {package_of(name) for name in imports(file)} & commands, file


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_command_beside_a_backbone_is_of_that_one(script):
    beside = {package.parent.name for package in script.parent.glob("*/__init__.py")} & set(BACKBONES)
    used = {package_of(name) for name in imports(script)} & set(BACKBONES)
    assert not beside or used == beside


def run_fresh(code: str) -> str:
    """What a fresh interpreter prints last."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_models_are_named_without_torch():
    code = "from evaluation.backbones import BACKBONES\nimport sys\nprint(len(BACKBONES), 'torch' in sys.modules)"
    assert run_fresh(code) == f"{len(PACKAGES)} False"


COUNTING = """
import json, sys
import evaluation.images, evaluation.jobs, evaluation.videos
from cache_dic import make_cache
from evaluation.backbones import count_caches
import torch

def loaded():
    return sorted(name for name in sys.modules if name.partition(".")[0] in PACKAGES and name.endswith(".model"))

seen = [loaded()]
for model in MODELS:
    count_caches(model, {"": make_cache("taylorseer", interval=2, max_order=1)}, 4, torch.float32)
    seen.append(loaded())
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_counting_a_model_loads_its_backbone_alone():
    models = {"wan": "wan-debug", "dit": "debug", "hidream": "hidream-debug", "flux": "flux-debug"}
    models["hunyuan_video"] = "hunyuan-debug"
    code = COUNTING.replace("PACKAGES", repr(set(BACKBONES))).replace("MODELS", repr(list(models.values())))
    packages = list(models)
    assert json.loads(run_fresh(code)) == [
        sorted(f"{package}.model" for package in packages[:count]) for count in range(len(packages) + 1)
    ]
