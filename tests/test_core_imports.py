"""The core imports with the packages of `dependencies` in pyproject.toml alone, and importing it does nothing else."""

import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Packages for which extras are needed by design; every other one belongs to the core.
NEEDS_EXTRAS = {"evaluation", "taylorseers_diffusers"}

# Run in a fresh interpreter: imports the modules named on its command line behind a finder that refuses every installed
# distribution outside `allowed` and what those need themselves, and prints what went wrong and what it saw happen.
PROBE = r"""
import importlib, importlib.abc, json, os, re, sys
from importlib import metadata

settings = json.loads(sys.argv[1])
canonical = lambda name: re.sub(r"[-_.]+", "-", name).lower()

allowed, waiting = set(), [canonical(name) for name in settings["allowed"]]
while waiting:
    name = waiting.pop()
    if name not in allowed:
        allowed.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        waiting += [canonical(re.match(r"[\w.-]+", need)[0]) for need in needs if "extra ==" not in need]

refused = {
    module
    for module, owners in metadata.packages_distributions().items()
    if not allowed & {canonical(owner) for owner in owners} and module not in settings["packages"]
}


class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"{name} is not a dependency of the core", name=name)
        return None


for name in [name for name in sys.modules if name.partition(".")[0] in refused]:
    del sys.modules[name]
sys.meta_path.insert(0, Refuse())

events, watching = [], True


def watch(event, arguments):
    if not watching:
        return
    if event == "open":
        path, mode, flags = arguments
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and path != os.devnull:
            events.append(f"open {path} {mode}")
    elif event in ("os.mkdir", "os.rename", "os.remove", "subprocess.Popen", "os.system", "os.exec", "os.fork",
                   "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        events.append(f"{event} {arguments[0]}")


import torch

state = lambda: {
    "default dtype": str(torch.get_default_dtype()),
    "random state": torch.get_rng_state().sum().item(),
    "threads": torch.get_num_threads(),
    "gradients": torch.is_grad_enabled(),
    "float32 products": torch.get_float32_matmul_precision(),
    "environment": dict(os.environ),
    "CUDA": torch.cuda.is_initialized(),
    "folder": os.getcwd(),
}
before = state()
sys.addaudithook(watch)
failed = {}
for name in settings["modules"]:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"
watching = False
after = state()
print(json.dumps({
    "failed": failed,
    "events": events,
    "changed": [key for key in before if before[key] != after[key]],
    "refused": sorted(refused),
    "imported": sorted({name.partition(".")[0] for name in sys.modules} & refused),
}))
"""


def core_modules() -> list[str]:
    """Every module of the core, by walking the source roots."""
    modules = []
    for root in CONFIG["tool"]["setuptools"]["packages"]["find"]["where"]:
        for package in sorted(path.parent for path in (ROOT / root).glob("*/__init__.py")):
            if package.name not in NEEDS_EXTRAS:
                for file in sorted(package.rglob("*.py")):
                    parts = file.relative_to(package.parent).with_suffix("").parts
                    modules.append(".".join(parts).removesuffix(".__init__"))
    return modules


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """What the probe printed, and the empty folder that it ran in."""
    folder = tmp_path_factory.mktemp("empty")
    modules = core_modules()
    settings = {
        "modules": modules,
        "packages": sorted({name.partition(".")[0] for name in modules}),
        "allowed": [line.partition(">")[0] for line in CONFIG["project"]["dependencies"]],
    }
    environment = {**os.environ, "HOME": str(folder), "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PROBE, json.dumps(settings)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), folder


def test_walk_finds_the_packages():
    found = {name.partition(".")[0] for name in core_modules()}
    assert {"cache_dic", "seerkit", "dit"} <= found
    assert "dit.model" in core_modules()


def test_core_needs_its_dependencies_alone(probe):
    seen, _ = probe
    assert seen["failed"] == {}
    assert seen["imported"] == []


def test_probe_refuses_what_the_core_must_not_need(probe):
    seen, _ = probe
    assert {"diffusers", "transformers", "pytest", "matplotlib"} <= set(seen["refused"])


def test_importing_has_no_effects(probe):
    seen, folder = probe
    assert seen["events"] == []
    assert seen["changed"] == []
    assert sorted(path.name for path in folder.iterdir()) == []


def test_source_roots_are_complete():
    """A folder that holds an import package of ours is a source root in pyproject.toml."""
    ours = {path.parents[1].name for path in ROOT.glob("[!.]*/*/__init__.py")} - {"tests", "build"}
    assert ours <= set(CONFIG["tool"]["setuptools"]["packages"]["find"]["where"])


def test_packages_are_first_party_to_the_linter():
    known = set(CONFIG["tool"]["ruff"]["lint"]["isort"]["known-first-party"])
    roots = CONFIG["tool"]["setuptools"]["packages"]["find"]["where"]
    assert {path.parent.name for root in roots for path in (ROOT / root).glob("*/__init__.py")} <= known


def loaded_after(code: str) -> set[str]:
    """Names of the modules that a fresh interpreter has loaded after `code`."""
    code += "\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_configurations_need_no_torch_and_no_training_data():
    loaded = loaded_after(
        "import dit.config, flux.config, hidream.config, hunyuan_video.config, wan.config\n"
        "from dit import dit_config; from flux import FluxConfig; from hidream import CONFIGS\n"
        "from hunyuan_video import hunyuan_video_config; from wan import WanConfig\n"
        "FluxConfig(), WanConfig(), dit_config('DiT-XL/2'), hunyuan_video_config('hunyuan-video')"
    )
    assert not {"torch", "numpy"} & loaded
    assert not {name for name in loaded if name.startswith("seerkit")}


@pytest.mark.parametrize("package", ["dit", "flux", "hidream", "hunyuan_video", "wan"])
def test_a_backbone_is_loaded_when_its_model_or_sampler_is_asked_for(package):
    loaded = loaded_after(f"import {package}\nassert 'sample' in dir({package})\nassert {package}.CONFIGS")
    assert "torch" not in loaded
    assert f"{package}.model" not in loaded
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert module.sample is importlib.import_module(f"{package}.sampler").sample
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'sampel'"):
        module.sampel  # noqa: B018
