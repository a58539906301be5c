"""Runs outlive the page and the server; scripts start them; the queue works them off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Page, expect
from serving import Server, Watch, wait_until

from segskd.events import WrittenEvent
from segskd.runs import Run
from ui.jobs import Jobs

Make = Callable[..., Any]


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.url, verbose=False)


@pytest.fixture(scope="module", autouse=True)
def _furnished(server: Server, data: Path, teacher_folder: Path) -> None:
    server.furnish(data, teacher_folder)


@pytest.fixture
def content(server: Server, recipe: Make) -> Callable[[int], dict[str, Any]]:
    """A recipe on the server's own data and teacher, as a script sends it."""

    def make(epochs: int) -> dict[str, Any]:
        made = recipe(optimisation={"epochs": epochs}, checkpoint_seconds=0).model_dump(mode="json")
        data = made["data"] | {"card": "bands", "folder": None}
        return {**made, "data": data, "teacher": str(server.data / "bands-teacher")}

    return make


@pytest.fixture
def begin(client: Client, content: Make) -> Callable[..., dict[str, Any]]:
    """Starts a run through the server's endpoint."""

    def start(name: str, epochs: int) -> dict[str, Any]:
        answer: dict[str, Any] = client.predict(content(epochs), name, api_name="/start_run")
        return answer

    return start


def events(server: Server, name: str, kind: str) -> list[WrittenEvent]:
    return [event for event in Run(server.runs / name).events() if event.kind == kind]


def test_a_script_starts_a_run_and_fetches_its_result(server: Server, client: Client, begin: Make) -> None:
    assert begin("by-script", 1)["run"] == "by-script"
    wait_until(lambda: client.predict("by-script", api_name="/run_state")["state"] == "finished", "the run's end")
    state = client.predict("by-script", api_name="/run_state")
    result = Run(server.runs / "by-script").read_json("result.json")
    assert state["miou"] == result["miou"]
    assert state["phases"] == 11
    assert [run["run"] for run in client.predict(api_name="/runs")] == ["by-script"]
    with pytest.raises(AppError, match="by-script exists"):
        begin("by-script", 1)
    with pytest.raises(AppError, match="a run's name has letters"):
        begin("../out", 1)


def test_a_reload_loses_nothing(
    server: Server, watched: tuple[Page, Watch], open_tab: Callable[[str], Page], begin: Make
) -> None:
    watched[1].forgiving = True
    begin("reloaded", 100_000)
    page = open_tab("watch&run=reloaded")
    strip = page.locator(".strip")
    expect(strip).to_contain_text("encoder.0")
    page.reload()
    expect(strip).to_contain_text("reloaded")
    expect(strip).to_contain_text("encoder.0")
    assert "run=reloaded" in page.url
    expect(page.get_by_role("tab", name="Watch", exact=True)).to_have_attribute("aria-selected", "true")
    assert Jobs(server.runs, server.data).busy() == ["reloaded"]


def test_it_is_stopped_and_resumed_from_the_strip(server: Server, open_tab: Callable[[str], Page]) -> None:
    page = open_tab("start")
    strip = page.locator(".strip")
    page.get_by_role("button", name="Stop now", exact=True).click()
    page.get_by_role("button", name="Keep going", exact=True).click()
    assert Jobs(server.runs, server.data).busy() == ["reloaded"]
    page.get_by_role("button", name="Stop after this epoch", exact=True).click()
    expect(strip).to_have_attribute("data-state", "interrupted")
    assert [e.kind for e in Run(server.runs / "reloaded").events()[-2:]] == ["epoch", "stopped"]
    page.get_by_role("button", name="Resume", exact=True).click()
    expect(strip).to_have_attribute("data-state", "running")
    wait_until(lambda: events(server, "reloaded", "resumed"), "the resumed run")
    page.get_by_role("button", name="Stop now", exact=True).click()
    page.locator("dialog").get_by_role("button", name="Stop now", exact=True).click()
    expect(strip).to_have_attribute("data-state", "interrupted")


def test_a_killed_server_finds_its_runs_again(
    server: Server, watched: tuple[Page, Watch], open_tab: Callable[[str], Page], begin: Make
) -> None:
    """The run goes on without it, the queue waits for it, and the page needs no reload."""
    page, watch = watched
    begin("lives-on", 100_000)
    open_tab("watch&run=lives-on")
    strip = page.locator(".strip")
    expect(strip).to_have_attribute("data-state", "running")
    wait_until(lambda: events(server, "lives-on", "epoch"), "an epoch")
    begin("waits", 1)
    expect(strip).to_contain_text("1 waiting")
    watch.forgiving = True
    server.kill()
    before = len(events(server, "lives-on", "epoch"))
    expect(strip).to_have_attribute("data-state", "lost")
    wait_until(lambda: len(events(server, "lives-on", "epoch")) > before, "an epoch without the server")
    server.start()
    expect(strip).to_have_attribute("data-state", "running")
    expect(strip).to_contain_text("1 waiting")
    watch.forgiving = False
    page.get_by_role("button", name="Stop now", exact=True).click()
    page.locator("dialog").get_by_role("button", name="Stop now", exact=True).click()
    wait_until(lambda: Run(server.runs / "waits").status() == "finished", "the run that waited")


def test_of_two_tabs_one_gets_the_name(server: Server, content: Make) -> None:
    """Two pages that start runs of one name at the same moment: one starts, one is told."""
    clients = [Client(server.url, verbose=False) for _ in range(2)]
    jobs = [client.submit(content(1), "wanted", api_name="/start_run") for client in clients]
    wait_until(lambda: all(job.done() for job in jobs), "both answers")
    problems = [str(job.exception()) for job in jobs if job.exception()]
    assert len(problems) == 1
    assert "wanted exists" in problems[0]
    wait_until(lambda: Run(server.runs / "wanted").status() == "finished", "the run that got the name")
