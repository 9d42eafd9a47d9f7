"""Pages in Chromium, for the tests of those that the commands write."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest


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
