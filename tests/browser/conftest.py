"""A server, a browser, and a watch over both: no errors on the console, no word to any other host."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from find_chromium import chromium
from playwright.sync_api import Browser, Page, expect, sync_playwright
from serving import LIMIT, Server, Watch

expect.set_options(timeout=1000 * LIMIT)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    """One server a test file; no test of the file may leave a worker behind that another does not expect.

    A file may name a program in place of app.py as its PROGRAM.
    """
    made = Server(tmp_path_factory.mktemp("server"), getattr(request.module, "PROGRAM", "app.py"))
    made.start()
    yield made
    printed = made.close()
    assert "Traceback" not in printed, printed
    assert not made.connections.exists(), made.connections.read_text()


@pytest.fixture
def watched(browser: Browser, server: Server) -> Iterator[tuple[Page, Watch]]:
    """A fresh page, and what is heard of it; nothing may be wrong in the end."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(1000 * LIMIT)
    watch = Watch(page)
    yield page, watch
    context.close()
    assert watch.problems == []


@pytest.fixture
def page(watched: tuple[Page, Watch]) -> Page:
    return watched[0]


@pytest.fixture
def open_tab(page: Page, server: Server) -> Callable[[str], Page]:
    """Opens the page at a tab, with more of the query behind it: "watch&run=x"."""

    def opened(tab: str) -> Page:
        page.goto(f"{server.url}/?tab={tab}")
        page.locator(".strip[data-state]").wait_for()
        return page

    return opened
