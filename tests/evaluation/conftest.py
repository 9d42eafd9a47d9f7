"""The legacy environment played by this one, with stubs of its libraries."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from evaluation import legacy

STUBS = Path(__file__).parents[1] / "shared" / "legacy_stub"


class Legacy:
    """A python that finds the stubs. Each call of a stub leaves a line in `done`."""

    def __init__(self, folder: Path) -> None:
        self.python, self.log = folder / "python", folder / "log"
        self.python.write_text(f'#!/bin/sh\nPYTHONPATH="{STUBS}" exec "{sys.executable}" "$@"\n')
        self.python.chmod(0o755)

    @property
    def done(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def stubbed(tmp_path, monkeypatch) -> Iterator[Legacy]:
    """A legacy environment of stubs, and empty folders of weights."""
    (tmp_path / "legacy").mkdir()
    made = Legacy(tmp_path / "legacy")
    monkeypatch.setenv(legacy.VARIABLE, str(made.python))
    monkeypatch.setenv("STUB_LOG", str(made.log))
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "weights"))
    monkeypatch.setenv("IMAGE_REWARD_DIR", str(tmp_path / "reward"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    legacy._facts_of.cache_clear()
    yield made
    legacy._facts_of.cache_clear()


@pytest.fixture
def no_legacy(tmp_path, monkeypatch) -> Path:
    """The folder of an environment that is not installed."""
    monkeypatch.delenv(legacy.VARIABLE, raising=False)
    monkeypatch.setattr(legacy, "FOLDER", tmp_path / "legacy-eval")
    legacy._facts_of.cache_clear()
    return tmp_path / "legacy-eval" / ".venv"
