"""For all tests: gpu tests skip with their reason, slow ones go first and have longer, `need` for optional packages."""

import importlib
import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SLOW_TIMEOUT_S = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            reason = f"needs a CUDA device, and torch {torch.__version__} sees none"
            item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))
    # Stable, so that every worker sees one order; a slow test begun last would keep the others waiting.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """Undo what a command run in this process does to the log (`seerkit.cli.show_log`)."""
    logger = logging.getLogger("cache_dic")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def need() -> Callable[[str], ModuleType]:
    """`need("xfuser")` imports an optional package, or skips the test and says why.

    pytest.importorskip catches ImportError alone; torchvision raises RuntimeError where its build differs from torch's,
    and xfuser NotImplementedError where torch has no accelerator.
    """

    def import_or_skip(name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except (ImportError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
            pytest.skip(f"needs {name}, which does not import here: {type(error).__name__}: {error}")

    return import_or_skip


@pytest.fixture(scope="session")
def load_command() -> Callable[[str], ModuleType]:
    """`load_command("eval/plot.py")` is that script as a module, its main to be called in this process."""

    def load(script: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"command_{Path(script).stem}", ROOT / script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def run_script() -> Callable[..., subprocess.CompletedProcess]:
    """`run_script("eval/plot.py", *argv, processes=1)` runs a script on one thread a process, several by torchrun."""

    def run(script: str, *argv: object, processes: int = 1) -> subprocess.CompletedProcess:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        return subprocess.run(
            [sys.executable, *(launcher if processes > 1 else []), str(ROOT / script), *map(str, argv)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run
