"""A dataset of one's own, from the zip to the pictures side by side, as a person takes it through the page."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect
from serving import Server, wait_until

from segskd.runs import Run

IMAGES = 16
TRAINING = 13
"""Four fifths of them; without splits of its own a dataset is divided by hash."""


@pytest.fixture
def archive(data: Path, tmp_path: Path) -> Path:
    """The fixture's images and masks, all of one list, in a folder that wraps both."""
    path = tmp_path / "street.zip"
    files = sorted((data / "bands").glob("*/*/*.png"))
    with zipfile.ZipFile(path, "w") as target:
        for file in files:
            split, kind, name = file.parts[-3:]
            target.write(file, f"my street/{kind}/{split}-{name}")
    assert len(files) == 2 * IMAGES
    return path


def read_subset_names(page: Page) -> set[str]:
    """The images that the gallery ticks."""
    cells = page.locator("#data .gallery .cell[aria-selected=true] .name")
    return set(cells.all_text_contents())


def take(page: Page, field: Locator, option: str | re.Pattern[str]) -> None:
    """Chooses from one of Gradio's lists."""
    field.click()
    page.get_by_role("option", name=option).click()


def test_from_a_zip_to_the_pictures_side_by_side(
    server: Server, open_tab: Callable[[str], Page], archive: Path, card_path: Path, teacher_folder: Path
) -> None:
    server.furnish(card_path.parent, teacher_folder)
    page = open_tab("data")
    upload(page, archive)
    pick(page)
    begin(page)
    watch(page, server)
    compare(page)


def upload(page: Page, archive: Path) -> None:
    page.get_by_role("button", name="Add a dataset", exact=False).click()
    page.locator("#data-zip input[type=file]").set_input_files(archive)
    expect(page.locator("#data-zip")).to_contain_text("street")
    page.get_by_role("button", name="Add this dataset", exact=True).click()
    added = page.locator("#data .added")
    expect(added).to_contain_text("Added «street», laid out as images and masks")
    expect(added).to_contain_text(f"{TRAINING} training, {IMAGES - TRAINING} validation images, 3 classes")
    expect(page.locator("#data .overview")).to_contain_text("nothing is wrong with any of them")
    tile = page.locator("#data .tile", has=page.get_by_text("street", exact=True))
    expect(tile).to_have_attribute("aria-pressed", "true")
    expect(tile).to_contain_text("yours")


def pick(page: Page) -> None:
    """Half of the images, by another rule, then one more by hand."""
    summary = page.locator("#data .summary")
    page.locator("#data-share").fill("50")
    expect(summary).to_have_text("6 of 13 images · random")
    cells = page.locator("#data .gallery .cell")
    expect(cells).to_have_count(TRAINING)
    expect(cells.locator("img")).to_have_count(TRAINING)
    random = read_subset_names(page)
    assert len(random) == 6
    page.get_by_label("Balanced by class", exact=True).check()
    expect(summary).to_have_text("6 of 13 images · balanced by class")
    balanced = read_subset_names(page)
    assert len(balanced) == 6
    came = balanced - random
    assert came
    expect(page.locator("#data .change")).to_contain_text(f"{len(came)} image")
    expect(page.locator("#data .cell[data-mark=came] .name")).to_have_text(sorted(came))
    expect(page.locator("#data .cell[data-mark=went] .name")).to_have_text(sorted(random - balanced))
    outside = page.locator("#data .cell[aria-selected=false]").first
    name = outside.locator(".name").inner_text()
    outside.click()
    expect(summary).to_have_text("7 of 13 images · by hand")
    assert read_subset_names(page) == balanced | {name}
    page.get_by_role("button", name="Distill with these", exact=True).click()


def begin(page: Page) -> None:
    expect(page.get_by_role("tab", name="Distill", exact=True)).to_have_attribute("aria-selected", "true")
    line = page.locator("#distill-data")
    expect(line).to_contain_text("street · 7 of 13 training images, picked by hand")
    take(page, page.locator("#distill-known input"), re.compile("^bands-teacher"))
    page.locator("#distill-advanced > button").click()
    page.locator("#distill-trust-teacher").get_by_role("checkbox").check()  # its weights are random
    page.locator("#distill-epochs").get_by_role("textbox").fill("1")
    size = page.locator("#distill-size input")
    size.fill("64x96")
    size.press("Enter")
    page.locator("#distill-name").get_by_role("textbox").fill("street-student")
    expect(page.locator("#distill-plan-panel")).to_contain_text("encoder.0")
    start = page.locator("#distill-start")
    expect(start).to_have_text("Start")
    start.click()
    panel = page.locator("#distill-preflight-panel")
    expect(panel).to_contain_text("street-student starts by itself when it fits.")


def watch(page: Page, server: Server) -> None:
    watching = page.get_by_role("tab", name="Watch", exact=True)
    expect(watching).to_have_attribute("aria-selected", "true")
    run = Run(server.runs / "street-student")
    assert run.recipe.data.size == (64, 96)
    assert run.recipe.optimisation.epochs == 1
    assert len(run.recipe.subset.names or ()) == 7
    expect(page.locator("#watch .rail-cell")).to_have_count(11)
    wait_until(lambda: run.status() == "finished", "the run's end")
    expect(page.locator("#watch .rail-cell[data-state=done]")).to_have_count(11)
    page.locator("#watch").get_by_role("button", name="Compare", exact=True).click()


def compare(page: Page) -> None:
    view = page.locator("#compare .compare-view")
    expect(page.locator("#compare .viewer-panel canvas")).to_have_count(4)
    expect(view).to_have_attribute("data-shown", re.compile("(train|val)-b"))
    for panel in page.locator("#compare .viewer-panel canvas").all():
        expect(panel).to_be_visible()
        assert panel.evaluate(COLOURS) > 2


COLOURS = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
}"""
