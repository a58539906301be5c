"""The demo as a person sees it, here a short one: from the Start button to a compared and exported student."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from playwright.sync_api import Page, expect
from serving import Server, wait_until

from segskd.config import make_recipe, merged
from segskd.runs import Run

PROGRAM = "tests/browser/short_demo.py"


def test_from_the_start_button_to_masks(server: Server, open_tab: Callable[[str], Page]) -> None:
    page = open_tab("start")
    page.get_by_role("button", name="Run the two-minute demo", exact=True).click()
    expect(page.get_by_role("tab", name="Watch", exact=True)).to_have_attribute("aria-selected", "true")
    strip = page.locator(".strip")
    expect(strip).to_contain_text("demo-teacher")
    expect(strip).to_contain_text("1 waiting")
    expect(strip).to_contain_text("demo-student")
    expect(page.locator("#watch .rail-cell")).to_have_count(11)
    first = page.locator("#watch .rail-cell").first
    expect(first).to_have_attribute("data-state", "done")
    expect(first).to_contain_text("mIoU")
    pictures = page.locator("#watch [data-part=previews] canvas, #watch [data-part=previews] img")
    expect(pictures.first).to_be_visible()
    wait_until(lambda: Run(server.runs / "demo-student").status() == "finished", "the demo's end")


def test_teacher_and_student_side_by_side(open_tab: Callable[[str], Page]) -> None:
    page = open_tab("start")
    page.locator("#start .step-card").nth(2).click()
    expect(page.get_by_role("tab", name="Compare", exact=True)).to_have_attribute("aria-selected", "true")
    panels = page.locator("#compare canvas")
    expect(panels.nth(3)).to_be_visible()
    page.wait_for_function("document.querySelectorAll('#compare canvas').length >= 4")
    shots = [Image.open(io.BytesIO(panels.nth(i).screenshot())).convert("RGB") for i in range(4)]
    colours = [len(np.unique(np.asarray(shot).reshape(-1, 3), axis=0)) for shot in shots]
    assert min(colours) > 1, f"an empty panel: {colours}"
    assert np.abs(np.asarray(shots[2], dtype=int) - np.asarray(shots[0], dtype=int)).mean() > 5


def test_the_student_is_exported_and_runs_without_us(
    server: Server, open_tab: Callable[[str], Page], tmp_path: Path
) -> None:
    page = open_tab("export&run=demo-student")
    page.get_by_label("onnx", exact=False).check()
    page.get_by_label("pixels go in", exact=False).check()
    expect(page.locator(".export-about")).to_contain_text("--format onnx --pixels")
    page.get_by_role("button", name="Export", exact=True).click()
    expect(page.get_by_role("heading", name="Certificate", exact=True)).to_be_visible()
    button = page.locator("#export-save")
    expect(button).to_contain_text("Download demo-student")
    with page.expect_download() as download:
        button.click()
    download.value.save_as(tmp_path / "student.zip")
    with zipfile.ZipFile(tmp_path / "student.zip") as archive:
        archive.extractall(tmp_path / "student")
    (file,) = (tmp_path / "student").rglob("model.onnx")
    pixels = np.zeros((1, 96, 128, 3), np.uint8)
    logits, mask = onnxruntime.InferenceSession(file).run(["logits", "mask"], {"image": pixels})
    assert (logits.shape, mask.shape) == ((1, 9, 96, 128), (1, 96, 128))
    page.get_by_label("safetensors", exact=False).check()
    expect(button).to_be_hidden()
    expect(page.get_by_role("heading", name="Certificate", exact=True)).to_be_hidden()


def test_a_smaller_student_is_begun_and_watched(server: Server, open_tab: Callable[[str], Page]) -> None:
    """It is repaired in half of the student's epochs, here of so many that they aren't over before the click."""
    student = Run(server.runs / "demo-student")
    epochs = {"optimisation": {"epochs": 2000}}
    student.write_recipe(make_recipe(merged(student.recipe.model_dump(mode="json"), epochs)))
    page = open_tab("export&run=demo-student")
    page.get_by_label("share of every layer's channels").select_option("0.5")
    page.get_by_role("button", name="Prune and train", exact=True).click()
    expect(page.locator(".export-pruned li")).to_have_text(re.compile("50 %.*"))
    page.get_by_role("button", name="Watch it", exact=True).click()
    expect(page.get_by_role("tab", name="Watch", exact=True)).to_have_attribute("aria-selected", "true")
    expect(page.locator("#watch")).to_contain_text("unet:resnet10 pruned by 50 %")
    run = Run(server.runs / "demo-student-pruned-50pc")
    wait_until(lambda: any(event.kind == "epoch" for event in run.events()), "an epoch of its repair")
    expect(page.locator("#watch .rail-cell").first).to_have_attribute("data-state", "training")
    page.get_by_role("button", name="Stop now", exact=True).click()
    page.locator("dialog").get_by_role("button", name="Stop now", exact=True).click()
    expect(page.locator(".strip")).to_have_attribute("data-state", "interrupted")
    assert run.status() == "interrupted"
