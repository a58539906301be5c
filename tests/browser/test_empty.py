"""A server that has nothing yet: every tab says what to do, and the button beside it goes there."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect
from serving import Watch, wait_until

SENTENCES = {
    "start": "No run yet",
    "data": "scenes",
    "distill": "Choose data",
    "watch": "No run yet",
    "compare": "Nothing to compare yet",
    "runs": "No run yet",
    "export": "There is no finished run yet",
}


@pytest.mark.parametrize("tab", SENTENCES)
def test_an_empty_tab_says_what_to_do(open_tab: Callable[[str], Page], tab: str) -> None:
    page = open_tab(tab)
    expect(page.locator(f"#tab-{tab}")).to_contain_text(SENTENCES[tab], ignore_case=True)
    expect(page.locator(".strip")).to_contain_text("Nothing is running")


@pytest.mark.parametrize("tab", ["watch", "compare", "runs", "export"])
def test_its_button_leads_on(open_tab: Callable[[str], Page], tab: str) -> None:
    page = open_tab(tab)
    page.locator(f"#tab-{tab} button:visible", has_text=re.compile("distill|student", re.I)).first.click()
    expect(page.get_by_role("tab", name="Distill", exact=True)).to_have_attribute("aria-selected", "true")


@pytest.mark.parametrize("run", ["../../etc", "%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E", "none"])
def test_a_link_to_no_run_opens_the_page_all_the_same(open_tab: Callable[[str], Page], run: str) -> None:
    page = open_tab(f"watch&run={run}")
    expect(page.locator(".strip")).to_contain_text("Nothing is running")


@pytest.mark.parametrize("tab", SENTENCES)
def test_no_tab_is_wider_than_the_window(open_tab: Callable[[str], Page], tab: str) -> None:
    page = open_tab(tab)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(300)
        page.wait_for_function(f"document.documentElement.scrollWidth <= {width}")


def test_the_shade_is_remembered(watched: tuple[Page, Watch], open_tab: Callable[[str], Page]) -> None:
    page = open_tab("start")
    watched[1].forgiving = True
    dark = page.evaluate("document.body.classList.contains('dark')")
    page.get_by_title("Light or dark").click()
    assert page.evaluate("document.body.classList.contains('dark')") is not dark
    page.reload()
    page.wait_for_function(f"document.body.classList.contains('dark') !== {str(dark).lower()}")


def test_a_page_that_rests_asks_for_no_frames(page: Page, open_tab: Callable[[str], Page]) -> None:
    """Gradio's sign of loading would ask for 60 a second, and the training beside it would feel that."""
    page.add_init_script(
        "window.frames_asked = 0; const ask = window.requestAnimationFrame;"
        "window.requestAnimationFrame = (step) => { window.frames_asked++; return ask(step); };"
    )
    open_tab("start")

    def rests() -> bool:
        before = page.evaluate("window.frames_asked")
        page.wait_for_timeout(1000)
        return bool(page.evaluate("window.frames_asked") - before < 10)

    wait_until(rests, "a second of rest")
