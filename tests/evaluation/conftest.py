"""For these tests: a random model, the legacy environment played by this one with stubs of its libraries, pages in Chromium."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Of FLUX's debug model, with every weight random."""
    import torch

    import flux
    from seerkit.weights.checkpoints import export_safetensors

    model, draw = flux.Flux(flux.flux_config("flux-debug")), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    path = tmp_path_factory.mktemp("weights") / "flux.safetensors"
    export_safetensors(path, model.state_dict())
    return path


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


# ------------------------------------------------------------------------------------------------------------- pages


@pytest.fixture(scope="session")
def browser(need) -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs Chromium, and neither chromium nor google-chrome is on PATH (Debian: apt install chromium)")
    with need("playwright.sync_api").sync_playwright() as driver:
        switches = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        started = driver.chromium.launch(executable_path=found, args=switches)
        yield started
        started.close()


@pytest.fixture
def look(browser) -> Iterator[Callable[..., Any]]:
    """`look(path, **settings of the context)`: an open page; at the end it has had no error and asked for files alone."""
    contexts, told, asked = [], [], []

    def open_page(path: Path, **settings: Any) -> Any:
        contexts.append(browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **settings}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: told.append(dialog.message) or dialog.dismiss())
        page.on("request", lambda request: asked.append(request.url))
        page.on("requestfailed", lambda request: told.append(f"{request.url}: {request.failure}"))
        page.goto(path.as_uri())
        page.asked = asked
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [text for text in told if "ERR_ABORTED" not in text] == [], "a video that is let go is aborted"
    assert {urlsplit(url).scheme for url in asked} == {"file"}
